"""The policy as a folder that plain transformers or PEFT loads.

``full``: ``AutoModelForCausalLM.from_pretrained(folder)`` after full fine-tuning, or of a LoRA policy with the update
merged into the weights. ``adapter``: ``PeftModel.from_pretrained(base, folder)``. Tokenizer, chat template and
generation config are in the folder either way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from rlhf_lightning.models.adapters import is_adapted, is_quantized
from rlhf_lightning.models.naming import of_adapter, plain_name, transformers_model
from rlhf_lightning.models.sharding import reshard, unsharded

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
        form: ``adapter``: only the adapter; ``merged``: ordinary weights with the adapter's update added; ``auto``:
            ``adapter`` where there is one, else the full weights.
        adapter: name of the adapter.

    Returns:
        The folder.

    Raises:
        ValueError: ``adapter`` was asked for and there is none, or quantised weights were to be merged or saved.
    """
    folder = Path(folder)
    adapted = is_adapted(policy.model)
    check_form(policy, form, adapted=adapted)
    if not adapted:
        _save_full(policy, folder)
    elif form == "merged":
        _save_merged(policy, folder, adapter)
    else:
        _save_adapter(policy, folder, adapter)
    if is_writer():
        tokenizer.save_pretrained(folder)
        transformers_model(policy).generation_config.save_pretrained(folder)
        log.info("exported the policy to %s", folder)
    if dist.is_initialized():
        dist.barrier()
    return folder


def check_form(policy: Backbone, form: str, *, adapted: bool) -> None:
    """Refuse a form that cannot be written.

    Raises:
        ValueError: see :func:`export`.
    """
    if form not in ("auto", "adapter", "merged"):
        raise ValueError(f"export form {form!r} is not auto, adapter or merged")
    if form == "adapter" and not adapted:
        raise ValueError("there is no adapter to export: choose form=auto for the full weights")
    if form == "merged" and is_quantized(policy.model):
        raise ValueError(
            "a quantised base cannot take the update without losing it to rounding: export form=adapter, and merge it "
            "into the full-precision base with PEFT's merge_and_unload"
        )


def _save_full(policy: Actor, folder: Path) -> None:
    state = _without_heads(policy, gathered(policy))
    if is_writer():
        model = transformers_model(policy)
        model.save_pretrained(folder, state_dict={plain_name(key): value for key, value in state.items()})


def _save_adapter(policy: Actor, folder: Path, adapter: str) -> None:
    state = _without_heads(policy, gathered(policy, trained_only=True))
    if is_writer():
        model: Any = policy.model
        model.save_pretrained(folder, state_dict=state, selected_adapters=[adapter])
        _name_base(folder, getattr(transformers_model(policy), "source_name", None))


def _name_base(folder: Path, name: str | None) -> None:
    """Name the base of an exported adapter as the user named it, where it was loaded out of a cache of ours.

    A folder of this machine's cache would tell another machine nothing.
    """
    for file in folder.rglob("adapter_config.json") if name is not None else ():
        config = json.loads(file.read_text())
        cached, config["base_model_name_or_path"] = config.get("base_model_name_or_path"), name
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        card = file.with_name("README.md")
        if card.is_file() and cached:
            card.write_text(card.read_text().replace(str(cached), str(name)))


def _save_merged(policy: Actor, folder: Path, adapter: str) -> None:
    model = transformers_model(policy)
    with unsharded(policy):
        if is_writer():
            state = merged_weights(model, adapter)
            with torch.device("meta"):
                shell = type(model)(model.config)
            shell.generation_config = model.generation_config
            shell.save_pretrained(folder, state_dict=state)


@torch.no_grad()
def merged_weights(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Weights of a transformers model with LoRA layers, the update of each added, by plain name, on the CPU.

    Layer by layer: merge, copy, and put the kept original back, so the model ends bit for bit as it was.
    """
    return {name: value.detach().to("cpu", copy=True) for name, value in iterate_merged(model, adapter)}


@torch.no_grad()
def iterate_merged(model: nn.Module, adapter: str = "default") -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight as :func:`merged_weights` has them, one at a time, on the model's device.

    A value is right until the next one is asked for. A layer that is adapted comes twice; its second value counts.
    """
    # Not state_dict(): FSDP2's hooks would shard the weights again.
    for name, value in _named_weights(model):
        if not of_adapter(name):
            yield plain_name(name), value
    for name, layer in model.named_modules():
        if hasattr(layer, "merge") and hasattr(layer, "get_base_layer"):
            yield from _merged_layer(name, layer, adapter)
        elif hasattr(layer, "modules_to_save") and adapter in layer.modules_to_save:
            trained = layer.modules_to_save[adapter].state_dict()
            yield from ((plain_name(f"{name}.{key}"), value) for key, value in trained.items())


def _named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    for name, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield f"{name}.{key}".removeprefix("."), buffer


def _merged_layer(name: str, layer: Any, adapter: str) -> Iterator[tuple[str, Tensor]]:
    weights = dict(_named_weights(layer.get_base_layer()))
    kept = {key: value.detach().clone() for key, value in weights.items()}
    layer.merge(adapter_names=[adapter])
    merged = {plain_name(f"{name}.{key}"): value.detach().clone() for key, value in weights.items()}
    layer.merged_adapters.clear()
    for key, value in weights.items():
        value.copy_(kept[key])
    yield from merged.items()


def gathered(policy: Backbone, *, trained_only: bool = False) -> dict[str, Tensor]:
    """The policy's state dict on the CPU of process 0, by the names of ``policy.model``; a collective call."""
    reshard(policy)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    state = get_model_state_dict(policy, options=options)
    return {name.removeprefix("model."): cast("Tensor", value) for name, value in state.items()}


def _without_heads(policy: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers knows: the weights of the model, not those of value heads that stand beside it."""
    beside = {name for name, _ in policy.named_children() if name != "model"}
    return {name: value for name, value in state.items() if name.partition(".")[0] not in beside}


def is_writer() -> bool:
    """Whether this process writes."""
    return not dist.is_initialized() or dist.get_rank() == 0
