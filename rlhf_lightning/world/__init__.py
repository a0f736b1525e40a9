"""The tiny world: a language small enough to align in seconds, with a gold reward that is known exactly.

``model=tiny data=tiny``: :class:`TinyWorld` is the base model, :class:`TinySource` its data of every kind,
:class:`TinyEvaluator` the evaluator's part, :class:`GoldScorer` the gold reward as a reward (``reward=gold``),
:class:`LabelScorer` the same with a labeller's errors, :class:`StepScorer` the same claim by claim,
:class:`SafetyScorer` reward and cost apart, :class:`CorrectScorer` whether a claim is right, :class:`CyclicScorer` a
preference without a best response (``reward=cyclic``), :func:`claim` the claim of a response, for votes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.world.base import TinyWorld as TinyWorld
    from rlhf_lightning.world.claims import claim as claim
    from rlhf_lightning.world.evaluator import TinyEvaluator as TinyEvaluator
    from rlhf_lightning.world.scorers import CorrectScorer as CorrectScorer
    from rlhf_lightning.world.scorers import CyclicScorer as CyclicScorer
    from rlhf_lightning.world.scorers import GoldScorer as GoldScorer
    from rlhf_lightning.world.scorers import LabelScorer as LabelScorer
    from rlhf_lightning.world.scorers import SafetyScorer as SafetyScorer
    from rlhf_lightning.world.scorers import StepScorer as StepScorer
    from rlhf_lightning.world.source import TinySource as TinySource

_HOME = {
    "CorrectScorer": "scorers",
    "CyclicScorer": "scorers",
    "GoldScorer": "scorers",
    "LabelScorer": "scorers",
    "SafetyScorer": "scorers",
    "StepScorer": "scorers",
    "TinyEvaluator": "evaluator",
    "TinySource": "source",
    "TinyWorld": "base",
    "claim": "claims",
}

__all__ = [
    "CorrectScorer",
    "CyclicScorer",
    "GoldScorer",
    "LabelScorer",
    "SafetyScorer",
    "StepScorer",
    "TinyEvaluator",
    "TinySource",
    "TinyWorld",
    "claim",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
