"""Lessons of a round of samples: advantages of tokens, or groups. Names load when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.lessons.base import Lesson as Lesson
    from rlhf_lightning.lessons.base import Round as Round
    from rlhf_lightning.lessons.credit import CreditLesson as CreditLesson
    from rlhf_lightning.lessons.experience import Experience as Experience
    from rlhf_lightning.lessons.rounds import Rounds as Rounds
    from rlhf_lightning.lessons.select import SelectLesson as SelectLesson

_HOME = {
    "CreditLesson": "credit",
    "Experience": "experience",
    "Lesson": "base",
    "Round": "base",
    "Rounds": "rounds",
    "SelectLesson": "select",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
