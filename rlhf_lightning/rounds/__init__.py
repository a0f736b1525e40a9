"""Prompts to training batches and back: rollouts of the policy while it trains. Names load when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.rounds.loader import RolloutLoader as RolloutLoader
    from rlhf_lightning.rounds.online import OnlineData as OnlineData

_HOME = {
    "OnlineData": "online",
    "RolloutLoader": "loader",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
