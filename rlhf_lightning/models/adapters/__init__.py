"""Adapters: LoRA on a model, folders that hold it, its start, its merging, and bases that several of them share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.models.adapters.lora import Lora as Lora

__all__ = ["Lora"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf_lightning.models.adapters import lora

    return getattr(lora, name)
