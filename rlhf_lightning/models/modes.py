"""Modes that a model is run in: evaluation mode, dropout, activation checkpointing, compiled layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from rlhf_lightning.models import attention
from rlhf_lightning.models.blocks import decoder_layers


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def disable_dropout(model: nn.Module) -> None:
    """Switch off everything in a model that is random in training mode.

    Dropout modules, the probabilities that models hand to functional dropout as plain numbers (attention dropout, all
    of OPT's), layer drop and router jitter.
    """
    for part in model.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(part, name, 0.0)


def set_gradient_checkpointing(model: Any, active: bool) -> None:
    """Switch a transformers model's activation checkpointing, non-reentrant: FSDP2 and packed rows need that kind.

    Raises:
        ValueError: the architecture has none.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(f"model.gradient_checkpointing=true, but {type(model).__name__} has no such thing")
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # renamed in 5.x
    if active:
        getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{word}_checkpointing_disable")()


def compile_layers(actor: nn.Module) -> None:
    """Compile each decoder layer in place; they share one graph, and names in state dicts stay as they are.

    Shared-prefix attention walks over the spans of the batch at hand, so it stays outside the graphs: traced, every
    batch would be a new program.
    """
    untraced = torch.compiler.disable(attention.attention_forward)  # type: ignore[no-untyped-call]
    AttentionInterface.register(attention.NAME, untraced)
    for layer in decoder_layers(actor):
        layer.compile(dynamic=True)
