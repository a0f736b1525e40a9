"""Digest of everything except the tokens that a stored log-probability depends on.

It is part of every key of the reference cache. It changes when the numbers could change: other weights, another dtype
or precision, another model configuration, another definition of log-probs. It does not change with the learning rate,
the loss, the seed, the output folder, the path the weights were loaded from, or the random matrices of a LoRA that is
switched off (or still at its start, where it adds nothing).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.models.hidden_states.steering import steered_blocks
from rlhf_lightning.models.loading.naming import adapter_parts, plain_name, transformers_model
from rlhf_lightning.models.sharding import whole
from rlhf_lightning.ops.log_probs import LOG_PROB_VERSION

#: Config fields that say where a model came from or how it is run, not what it computes.
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "quantization_config",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    }
)
#: Fields of an adapter's config that say where it came from, how it began or how it is trained: what it computes is in
#: its weights, whose names say which layers have it, and in the other fields (``lora_alpha``, ``use_rslora``, ...).
_NO_PART_OF_ADAPTER = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "eva_config",
        "inference_mode",
        "init_lora_weights",
        "loftq_config",
        "lora_dropout",
        "peft_version",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)


def reference_fingerprint(model: nn.Module, *, adapter: bool = True, precision: str = "32-true") -> str:
    """Digest of everything but the tokens that a log-probability depends on; the same in every process.

    Reads each weight once: about a second for three billion bytes. On sharded weights a collective call.

    Args:
        model: an actor, a PEFT model or a transformers model.
        adapter: whether the adapter is on. Off, the digest is that of the model without adapter.
        precision: the trainer's, for example ``bf16-mixed``.

    Returns:
        32 hexadecimal digits.
    """
    plain = transformers_model(model)
    tensors = dict(_named_tensors(plain, adapter=adapter)) | dict(_heads(model, plain))
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, tensors.values()))
    config = {key: value for key, value in plain.config.to_dict().items() if key not in _IRRELEVANT}
    whole = hashlib.sha256()
    for part in (
        f"log_probs {LOG_PROB_VERSION}",
        f"precision {precision}",
        json.dumps(config, sort_keys=True, default=str),
        *(_adapter_settings(model, tensors) if adapter else ()),
        *(f"layer {number} {hook} {_digest(vector)}" for number, hook, vector in steered_blocks(plain)),
        *(f"{name} {digest}" for name, digest in sorted(zip(tensors, digests, strict=True))),
    ):
        whole.update(part.encode() + b"\0")
    return whole.hexdigest()[:32]


def _heads(model: nn.Module, plain: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights of an actor outside the transformers model: a scorer's head."""
    if model is plain or hasattr(model, "config"):
        return
    for name, part in model.named_children():
        if name != "model":
            yield from ((f"{name}.{key}", whole(value)) for key, value in part.state_dict().items())


def _adapter_settings(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Settings that change an adapter's output besides its weights, as LoRA's scale; none while its update is zero."""
    adapted: Any = model if hasattr(model, "peft_config") else getattr(model, "model", None)
    updated = any(".lora_" in name and ".lora_magnitude" not in name for name in tensors)
    for name in getattr(adapted, "active_adapters", ()) if hasattr(adapted, "peft_config") else ():
        fields = adapted.peft_config[name].to_dict()
        if updated or fields["peft_type"] != "LORA":
            kept = {key: value for key, value in fields.items() if key not in _NO_PART_OF_ADAPTER}
            yield json.dumps(kept, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def _named_tensors(model: nn.Module, *, adapter: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights (and what dequantises them) by plain name, less the adapter's where it is off or adds nothing."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    silent, left_out = _silent_layers(state), () if adapter else adapter_parts(model)
    for name, value in state.items():
        layer, of_lora, rest = name.partition(".lora_")
        if name.startswith(left_out):
            continue
        if of_lora and layer in silent and not rest.startswith("magnitude"):
            continue
        yield plain_name(name), whole(value)


def _silent_layers(state: dict[str, Tensor]) -> set[str]:
    """Layers whose LoRA update B A is zero, as at the start: what the random factor holds then is of no account."""
    zero: dict[str, bool] = {}
    for name, value in state.items():
        layer, of_lora, rest = name.partition(".lora_")
        if of_lora and rest.startswith(("B.", "embedding_A.")):  # an embedding's A is the factor that starts at zero
            zero[layer] = zero.get(layer, True) and not bool(whole(value).any())
    return {layer for layer, is_zero in zero.items() if is_zero}


def _digest(value: Tensor) -> str:
    raw = value.to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    header = f"{value.dtype} {tuple(value.shape)} ".encode()
    return hashlib.sha256(header + hashlib.sha256(cast("Any", raw)).digest()).hexdigest()
