"""The policy as a folder that plain transformers or PEFT loads.

Full or merged weights: ``AutoModelForCausalLM.from_pretrained(folder)`` after full fine-tuning, or of a policy with an
adapter whose update is merged into the weights. An adapter: ``PeftModel.from_pretrained(base, folder)``. Tokenizer,
chat template and generation config are in the folder either way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from rlhf_lightning.models.adapters.lora import is_adapted, without_adapter
from rlhf_lightning.models.adapters.merging import check_mergeable, merged_config, merged_weights, tied_names
from rlhf_lightning.models.hidden_states.steering import refuse_steered
from rlhf_lightning.models.loading.naming import ADDED_ROWS, BASE_NOTE, plain_name, transformers_model
from rlhf_lightning.models.loading.weights import is_quantized
from rlhf_lightning.models.sharding import reshard, whole, whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.backbone import Backbone

log = logging.getLogger(__name__)

Form = Literal["auto", "adapter", "merged"]


def export(
    policy: Actor,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    form: Form = "auto",
    adapter: str = "default",
) -> Path:
    """Write the policy, its tokenizer and its generation config.

    The same call for one process, DDP and FSDP2: a collective one, of which process 0 writes. The policy's own weights
    are not touched; in particular a merge is never done and undone in place, which would round half-precision weights.

    Args:
        policy: sharded or not.
        tokenizer: saved beside the weights.
        folder: made when missing; files of the same names in it are replaced.
        form: ``adapter``: only the adapter; ``merged``: ordinary weights with the adapter's update added; ``auto``: see
            :func:`written_form`.
        adapter: name of the adapter.

    Returns:
        The folder.

    Raises:
        ValueError: see :func:`check_export`.
    """
    folder = Path(folder)
    written = written_form(policy, tokenizer, form)
    if written == "adapter":
        save_adapter(policy, folder, adapter_state(policy, adapter), adapter)
        _note_base(folder, missing_base(policy, tokenizer))
    elif written == "merged":
        _save_merged(policy, folder, adapter)
    else:
        _save_full(policy, folder)
    if is_writer():
        _remove_other_form(folder, written)
        tokenizer.save_pretrained(folder)
        transformers_model(policy).generation_config.save_pretrained(folder)
        log.info("exported the policy to %s", folder)
    if dist.is_initialized():
        dist.barrier()
    return folder


def check_export(policy: Backbone, tokenizer: PreTrainedTokenizerBase, form: Form, *, adapter: str = "default") -> None:
    """Refuse, before anything is trained, what could not be exported afterwards; a collective call.

    Raises:
        ValueError: an unknown form; ``adapter`` was asked for and there is none; quantised weights were to be merged;
            or PEFT cannot merge this kind of adapter.
    """
    if written_form(policy, tokenizer, form) == "merged":
        with whole_weights(policy):
            check_mergeable(transformers_model(policy), adapter)


def written_form(
    policy: Backbone, tokenizer: PreTrainedTokenizerBase, form: Form
) -> Literal["full", "adapter", "merged"]:
    """The form that an export takes.

    ``auto`` is the adapter where there is one and its base can be had by name. Where it cannot (see
    :func:`missing_base`) the merged weights are the form that loads anywhere.

    Raises:
        ValueError: a form that cannot be written; see :func:`check_export`.
    """
    if form not in ("auto", "adapter", "merged"):
        raise ValueError(f"export form {form!r} is not auto, adapter or merged")
    refuse_steered(policy, "an export would be another model. Set callbacks.export=null, and use the run (run=FOLDER)")
    if not is_adapted(policy.model):
        if form == "adapter":
            raise ValueError("there is no adapter to export: choose form=auto for the full weights")
        return "full"
    if form == "merged" and is_quantized(policy.model):
        raise ValueError(
            "a quantised base cannot take the update without losing it to rounding: export form=adapter, and merge it "
            "into the full-precision base with PEFT's merge_and_unload"
        )
    if form != "auto":
        return form
    return "adapter" if is_quantized(policy.model) or missing_base(policy, tokenizer) is None else "merged"


def missing_base(policy: Backbone, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Note on what is missing for users of the adapter alone; None: its base is a model that loads by its name.

    Args:
        policy: with an adapter.
        tokenizer: whose padding token, if it was added to the base, changes nothing that is read.
    """
    model: Any = transformers_model(policy)
    if (note := getattr(model, BASE_NOTE, None)) is not None:
        return f"The base of this adapter is {note}."
    added = set(getattr(model, ADDED_ROWS, ()))
    vocabulary = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    if added and (added != {tokenizer.pad_token_id} or any(without_adapter(part) is not part for part in vocabulary)):
        return (
            f"The base of this adapter has {len(added)} tokens more than {model.name_or_path} "
            f"(model.resize_token_embeddings({max(added) + 1})), with embeddings of their own."
        )
    return None


def _save_full(policy: Backbone, folder: Path) -> None:
    tied = tied_names(transformers_model(policy))
    state = _without_heads(policy, gathered(policy))
    if is_writer():
        model = transformers_model(policy)
        plain = {name: value for key, value in state.items() if (name := plain_name(key)) not in tied}
        model.save_pretrained(folder, state_dict=plain)


def _save_merged(policy: Backbone, folder: Path, adapter: str) -> None:
    model: Any = transformers_model(policy)
    with whole_weights(policy):
        if is_writer():
            state = merged_weights(model, adapter)
            config = merged_config(model)
            with torch.device("meta"):
                shell = type(model)(config).to(model.dtype)
            shell.generation_config = model.generation_config
            shell.save_pretrained(folder, state_dict=state)


def adapter_state(policy: Backbone, adapter: str = "default") -> dict[str, Tensor]:
    """Weights that PEFT saves of an adapter, by the names of ``policy.model``, on the CPU of process 0; collective.

    Trained weights, and frozen ones that belong to some kinds of adapters (VeRA's projections). Never a frozen
    embedding of the base, which PEFT would add where the vocabulary was resized.
    """
    from peft import get_peft_model_state_dict

    trained = gathered(policy, trained_only=True)
    held: dict[str, Any] = policy.model.state_dict()
    selected = get_peft_model_state_dict(
        policy.model, state_dict=held, adapter_name=adapter, save_embedding_layers=False
    )
    wanted = {id(value) for value in selected.values()}
    names = [name for name, value in held.items() if id(value) in wanted]
    parameters = policy.model.named_parameters(remove_duplicate=False)
    training = {name for name, parameter in parameters if parameter.requires_grad}
    # Process 0 alone has the trained ones; which are frozen, and gathered here, every process must agree on.
    frozen = {name: whole(held[name]).cpu() for name in names if name not in training}
    return {name: (trained if name in training else frozen)[name] for name in names} if is_writer() else {}


def save_adapter(policy: Backbone, folder: Path, state: Mapping[str, Tensor], adapter: str = "default") -> None:
    """Write an adapter as PEFT does; only process 0 writes.

    Args:
        policy: whose adapter it is.
        folder: made when missing.
        state: see :func:`adapter_state`.
        adapter: name of the adapter.
    """
    if not is_writer():
        return
    model: Any = policy.model
    model.save_pretrained(folder, state_dict=dict(state), selected_adapters=[adapter], save_embedding_layers=False)


def gathered(policy: Backbone, *, trained_only: bool = False) -> dict[str, Tensor]:
    """The policy's state dict on the CPU of process 0, by the names of ``policy.model``; a collective call."""
    reshard(policy)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    state = get_model_state_dict(policy, options=options)
    return {name.removeprefix("model."): cast("Tensor", value) for name, value in state.items()}


def _without_heads(policy: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the transformers model, without those of value heads."""
    heads = {name for name, _ in policy.named_children() if name != "model"}
    return {name: value for name, value in state.items() if name.partition(".")[0] not in heads}


def _note_base(folder: Path, note: str | None) -> None:
    """Say in an adapter's README, and in the log, what it needs that does not load by a name."""
    if note is None or not is_writer():
        return
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    if note not in card.text:
        card.text = f"\n{note}\n{card.text}"
        card.save(folder / "README.md")
    log.warning("%s: %s (callbacks.export.form=merged needs no base)", folder, note)


def _remove_other_form(folder: Path, written: str) -> None:
    """Remove what an earlier export of another form left: transformers would read that."""
    stale = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
    if written != "adapter":
        # The README is PEFT's.
        stale = ["adapter_config.json", "adapter_model.safetensors"]
        stale += ["README.md"] if (folder / "adapter_config.json").is_file() else []
    for file in [file for pattern in stale for file in folder.glob(pattern)]:
        file.unlink()


def is_writer() -> bool:
    """Return whether this process writes."""
    return not dist.is_initialized() or dist.get_rank() == 0
