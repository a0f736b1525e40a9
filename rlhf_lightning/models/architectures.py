"""Facts about model families: which can be packed, and how their head changes its logits.

A family is listed when ``tests/models/test_parity.py`` shows on a random model of it that packed, padded and one row at
a time give equal numbers, forward and backward. Any other model runs padded, its logits made by its own ``forward``.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_lightning.ops.log_probs import LogitTransform

logger = logging.getLogger(__name__)

Backend = Literal["packed", "padded"]

#: ``config.model_type`` of the families with tested parity.
FAMILIES = frozenset(
    {
        "cohere",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "opt",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "starcoder2",
    }
)

_warned: set[str] = set()


def has_tested_parity(model: PreTrainedModel) -> bool:
    """Return whether the model is a causal language model of a family with tested parity."""
    return model.config.model_type in FAMILIES and _head(model) is not None


def _head(model: Any) -> Any:
    return model.get_output_embeddings()


def why_not_packed(model: PreTrainedModel, *, vocabulary: bool = True) -> str | None:
    """The reason why a model cannot be packed, for people; None: it can. ``vocabulary``: whether its head is used."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"packing is not tested for model type {config.model_type!r}"
    if vocabulary and _head(model) is None:
        return f"{type(model).__name__} has no language-model head"
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        return "its attention is bidirectional"
    if getattr(config, "add_cross_attention", False):
        return "it has cross-attention"
    return None


def choose_backend(
    model: PreTrainedModel, backend: Literal["auto", "packed", "padded"], *, vocabulary: bool = True
) -> Backend:
    """The backend that a model runs on; ``auto`` packs where parity is tested and says once when it cannot.

    Args:
        model: a transformers model.
        backend: what the user asked for.
        vocabulary: whether the model's head over the vocabulary is used.

    Raises:
        ValueError: an unknown name, or ``packed`` for a model that cannot be packed.
    """
    if backend not in {"auto", "packed", "padded"}:
        raise ValueError(f"unknown backend {backend!r}; choose auto, packed or padded")
    if backend == "padded":
        return "padded"
    reason = why_not_packed(model, vocabulary=vocabulary)
    if reason is None:
        return "packed"
    if backend == "packed":
        raise ValueError(f"backend=packed does not work for this model: {reason}; use backend=auto or backend=padded")
    if reason not in _warned:
        _warned.add(reason)
        logger.warning("Running %s on padded batches: %s.", type(model).__name__, reason)
    return "padded"


def logit_transform(config: PreTrainedConfig, temperature: float) -> LogitTransform:
    """Change that a listed family makes to its head's output: Gemma's soft-cap, Cohere's and Granite's scale."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None), temperature)


def is_plain_head(head: nn.Module) -> bool:
    """Return whether a head is nothing but a weight and perhaps a bias: no adapter, no hooks, no quantised subclass."""
    return type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
