"""Reward models as sequence-classification folders, the form that transformers and other tools exchange them in.

Written: ``AutoModelForSequenceClassification.from_pretrained(folder)`` gives the scores that were trained, before
normalisation; the normalisation is in the configuration as ``score_normalization``, and whoever loads the folder here
(:class:`~rlhf_lightning.models.sources.Pretrained`) gets it back with the head.

transformers reads a score at the last token that is not padding. A tokenizer that pads with its end-of-sequence token
would have it read one token early, so such a tokenizer is refused.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf_lightning.models.adapters.folders import note_merged
from rlhf_lightning.models.adapters.lora import is_adapted
from rlhf_lightning.models.adapters.merging import merge_and_unload, merged_weights
from rlhf_lightning.models.export.policy import (
    Form,
    adapter_state,
    check_export,
    gathered,
    is_writer,
    save_adapter,
    written_form,
)
from rlhf_lightning.models.loading.heads import HEAD, NORMALIZATION, POOL, SavedHead, saved_head
from rlhf_lightning.models.loading.naming import plain_name, transformers_model
from rlhf_lightning.models.loading.weights import PEFT_PREFIX, check_classifier, is_quantized, load_adapter, load_model
from rlhf_lightning.models.scorers.scorer import ScalarHead, Scorer
from rlhf_lightning.models.sharding import whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_LOADING = "\n\n## Loading\n"
_LOADING_TEXT = """
The base does not know this head's outputs, nor the token that its tokenizer pads with, so both are given:

```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained({base!r}, {options})
model = PeftModel.from_pretrained(base, folder)
```

Scores are read at the last token of a conversation as the tokenizer's chat template renders it.
"""


def is_classifier(folder: str | Path, revision: str | None = None) -> bool:
    """Return whether a folder (or hub repository) holds a sequence-classification model, or an adapter for one."""
    from transformers import AutoConfig

    adapter = Path(folder) / "adapter_config.json"
    if adapter.is_file():
        return bool(json.loads(adapter.read_text(encoding="utf-8")).get("task_type") == "SEQ_CLS")
    config = AutoConfig.from_pretrained(str(folder), revision=revision or "main", trust_remote_code=False)
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def load_whole(folder: str, options: dict[str, Any], *, merged: bool = True) -> Any:
    """A sequence-classification model with its head; an adapter is merged into its base.

    Args:
        folder: or hub id.
        options: of ``from_pretrained``.
        merged: False leaves an adapter beside its base, which others may stand on: a PEFT model, not to be trained.

    Raises:
        ValueError: it is another kind of model, or its files lack weights, such as the head.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    adapter = Path(folder) / "adapter_config.json"
    if not adapter.is_file():
        config = AutoConfig.from_pretrained(folder, revision=options.get("revision", "main"), trust_remote_code=False)
        check_classifier(folder, config.architectures)
        return load_model(AutoModelForSequenceClassification, folder, **options)
    described = json.loads(adapter.read_text(encoding="utf-8"))
    base, heads = described["base_model_name_or_path"], described.get("modules_to_save") or [HEAD]
    config = _adapter_config(folder, base, heads)
    options = {name: value for name, value in options.items() if name != "revision"}
    options |= {"num_labels": config.num_labels, "pad_token_id": config.pad_token_id}
    loaded = load_model(AutoModelForSequenceClassification, base, new=heads, other_heads=True, **options)
    model: Any = load_adapter(loaded, folder, trainable=False, whole=True)
    setattr(loaded.config, NORMALIZATION, getattr(config, NORMALIZATION, None))
    return note_merged(merge_and_unload(model), folder, base) if merged else model


def _adapter_config(folder: str, base: str, heads: Sequence[str]) -> Any:
    """The configuration of a reward model's adapter; other software writes none, so that its parts are looked for.

    Args:
        folder: of the adapter.
        base: that it names.
        heads: names of modules that may be the head.

    Returns:
        That of the folder; else the base's with as many outputs as the saved head has, and the padding token of the
        folder's tokenizer where the base has none.

    Raises:
        ValueError: the adapter's file has no head.
    """
    from peft import load_peft_weights
    from transformers import AutoConfig, AutoTokenizer

    if (Path(folder) / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    weights = load_peft_weights(folder, device="cpu")
    names = [f"{PEFT_PREFIX}{head}" for head in heads]
    name = next((name for name in names if f"{name}.weight" in weights), names[0])
    config.num_labels = len(saved_head(weights, name, folder).weight)
    if config.pad_token_id is None and (Path(folder) / "tokenizer_config.json").is_file():
        config.pad_token_id = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).pad_token_id
    return config


def without_head(model: Any) -> Any:
    """Take the head off a decoder's sequence-classification model and leave it at ``model.saved_head``.

    Args:
        model: of transformers, or a PEFT model around one, whose head is then the adapter's copy.

    Raises:
        ValueError: the model has no linear head where decoders have it.
    """
    adapted, model = model, transformers_model(model)
    head: Any = getattr(model, HEAD, None)
    if is_adapted(adapted) and hasattr(head, "modules_to_save"):
        head = head.modules_to_save[adapted.active_adapter]
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{model.name_or_path}: {type(model).__name__} has no linear head named {HEAD!r}, so it is no decoder that "
            "could be trained here; rewards.ModelReward can use it as it is"
        )
    bias = None if head.bias is None else head.bias.detach().clone()
    changed: Any = model
    noted = {name: getattr(model.config, name, None) for name in (NORMALIZATION, POOL)}
    changed.saved_head = SavedHead.of(head.weight.detach().clone(), bias, noted, str(model.name_or_path))
    changed.score = nn.Identity()
    return adapted


def export_scorer(
    policy: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    form: Form = "auto",
    outputs: int | None = None,
    adapter: str = "default",
) -> Path:
    """Write a scorer as a sequence-classification folder; the same call for one process, DDP and FSDP2.

    Args:
        policy: sharded or not.
        tokenizer: saved beside the weights.
        folder: made when missing; files of the same names in it are replaced.
        form: ``adapter``: only the adapter and the head; ``merged``: ordinary weights with the adapter's update added;
            ``auto``: ``merged``, or ``adapter`` on a quantised base. An adapter alone does not say how many outputs its
            head has and which token is padding, and loaders that take both from the base fail or read another score.
        outputs: how many of the head's outputs, from the first; None: all.
        adapter: name of the adapter.

    Returns:
        The folder.

    Raises:
        ValueError: see :func:`check_scorer_export`.
    """
    _check_scorer(policy, tokenizer)
    folder = Path(folder)
    config, kind = _target(policy, tokenizer, outputs or policy.outputs)
    if written_form(policy, tokenizer, _explicit(policy, form)) == "adapter":
        _write_adapter(policy, folder, config, adapter)
    else:
        _write_full(policy, folder, config, kind, adapter)
    if is_writer():
        tokenizer.save_pretrained(folder)
        log.info("exported the scorer to %s", folder)
        if policy.head.bias is not None:
            log.info("transformers' head has no bias: its scores differ by the bias, which is kept as a mean")
    if dist.is_initialized():
        dist.barrier()
    return folder


def check_scorer_export(policy: Scorer, tokenizer: PreTrainedTokenizerBase, form: Form = "auto") -> None:
    """Refuse, before anything is trained, a scorer that could not be exported afterwards; a collective call.

    Raises:
        ValueError: see :func:`~rlhf_lightning.models.export.policy.check_export`; or the scorer is gated, the tokenizer
            pads with EOS, or transformers has no sequence-classification model of this family.
    """
    _check_scorer(policy, tokenizer)
    check_export(policy, tokenizer, _explicit(policy, form))


def _explicit(policy: Scorer, form: Form) -> Form:
    """Value of ``auto`` for a scorer."""
    mergeable = is_adapted(policy.model) and not is_quantized(policy.model)
    return "merged" if form == "auto" and mergeable else form


def _check_scorer(policy: Scorer, tokenizer: PreTrainedTokenizerBase) -> None:
    if not policy.linear:
        raise ValueError(
            "a gated reward model has no sequence-classification form: use its run (rlhf evaluate run=...), and set "
            "callbacks.export=null"
        )
    check_padding(tokenizer)
    _target(policy, tokenizer, policy.outputs)


def check_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that pads with its end-of-sequence token.

    Raises:
        ValueError: it does.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            "the tokenizer pads with its EOS token, and transformers reads a score at the last token that is not "
            "padding: give it another padding token, for example model.pad_token='<|pad|>'"
        )


def _target(policy: Scorer, tokenizer: PreTrainedTokenizerBase, outputs: int) -> tuple[Any, Any]:
    """Configuration and class of what is written."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    config = copy.deepcopy(policy.base.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence-classification model for {config.model_type!r}, so this scorer cannot be "
            "exported; set callbacks.export=null and use its checkpoint"
        )
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    config.architectures = [kind.__name__]
    config.num_labels = outputs
    config.problem_type = "regression"
    config.pad_token_id = tokenizer.pad_token_id
    return config, kind


def _head_state(policy: Scorer, state: dict[str, Tensor], config: Any) -> Tensor:
    """The head's weights as transformers wants them; notes normalisation and pool in the configuration."""
    shell = ScalarHead(state["head.weight"].shape[1], len(state["head.weight"]), unit_rows=policy.head.unit_rows)
    shell.weight.data = state["head.weight"]
    bias = state.get("head.bias")
    mean = policy.mean - (0.0 if bias is None else float(bias[0]))
    setattr(config, NORMALIZATION, {"mean": mean, "std": policy.std})
    if policy.pool != "eos" or hasattr(config, POOL):
        setattr(config, POOL, policy.pool)
    if policy.pool != "eos":
        log.warning(
            "scores were trained at the token before the last one (method.head.pool=%s), where this software reads "
            "them; other software reads the last token",
            policy.pool,
        )
    return shell.rows().detach()[: config.num_labels].to(state["head.weight"].dtype).contiguous()


def _write_full(policy: Scorer, folder: Path, config: Any, kind: Any, adapter: str) -> None:
    if is_adapted(policy.model):
        with whole_weights(policy):
            head = {f"head.{name}": value.detach().cpu() for name, value in policy.head.named_parameters()}
            state = merged_weights(transformers_model(policy), adapter) | head if is_writer() else {}
    else:
        state = gathered(policy)
    if not is_writer():
        return
    score = _head_state(policy, state, config)
    with torch.device("meta"):
        shell = kind(config).to(policy.base.dtype)
    wanted = shell.state_dict().keys()
    plain = {name: value for key, value in state.items() if (name := plain_name(key)) in wanted}
    shell.save_pretrained(folder, state_dict=plain | {"score.weight": score})


def _write_adapter(policy: Scorer, folder: Path, config: Any, adapter: str) -> None:
    state, of_adapter = gathered(policy, trained_only=True), adapter_state(policy, adapter)
    if not is_writer():
        return
    from safetensors.torch import load_file, save_file

    score = _head_state(policy, state, config)
    save_adapter(policy, folder, of_adapter, adapter)
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights) | {"base_model.model.score.weight": score}, weights, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    kept = [*(described.get("modules_to_save") or []), "score"]
    described |= {"task_type": "SEQ_CLS", "modules_to_save": kept}
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    config.save_pretrained(folder)
    _explain_loading(folder, config, described["base_model_name_or_path"])


def _explain_loading(folder: Path, config: Any, base: str) -> None:
    """Write into an adapter's README the call that loads it with the scores that were trained."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    options = f"num_labels={config.num_labels}, pad_token_id={config.pad_token_id}"
    card.text = card.text.split(_LOADING, 1)[0].rstrip() + _LOADING + _LOADING_TEXT.format(base=base, options=options)
    card.save(folder / "README.md")
