"""Rows to batches: sources, formats, chat templates, checks, packing and the data module.

Names are loaded when they are first used, so that looking at data needs no Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.data.benchmark import RewardBench as RewardBench
    from rlhf_lightning.data.binarized import Binarized as Binarized
    from rlhf_lightning.data.checks import DataError as DataError
    from rlhf_lightning.data.checks import Problem as Problem
    from rlhf_lightning.data.checks import Report as Report
    from rlhf_lightning.data.examples import Examples as Examples
    from rlhf_lightning.data.mixture import Mixture as Mixture
    from rlhf_lightning.data.model_pairs import ModelPairs as ModelPairs
    from rlhf_lightning.data.module import AlignmentDataModule as AlignmentDataModule
    from rlhf_lightning.data.module import Place as Place
    from rlhf_lightning.data.reasoning import ReasoningGym as ReasoningGym
    from rlhf_lightning.data.sources import Files as Files
    from rlhf_lightning.data.sources import Hub as Hub
    from rlhf_lightning.data.sources import Packaged as Packaged
    from rlhf_lightning.data.spec import DataSpec as DataSpec

_HOME = {
    "AlignmentDataModule": "rlhf_lightning.data.module",
    "Binarized": "rlhf_lightning.data.binarized",
    "DataError": "rlhf_lightning.data.checks",
    "DataSpec": "rlhf_lightning.data.spec",
    "Examples": "rlhf_lightning.data.examples",
    "Files": "rlhf_lightning.data.sources",
    "Hub": "rlhf_lightning.data.sources",
    "Mixture": "rlhf_lightning.data.mixture",
    "ModelPairs": "rlhf_lightning.data.model_pairs",
    "Packaged": "rlhf_lightning.data.sources",
    "Place": "rlhf_lightning.data.module",
    "Problem": "rlhf_lightning.data.checks",
    "ReasoningGym": "rlhf_lightning.data.reasoning",
    "Report": "rlhf_lightning.data.checks",
    "RewardBench": "rlhf_lightning.data.benchmark",
}

__all__ = [
    "AlignmentDataModule",
    "Binarized",
    "DataError",
    "DataSpec",
    "Examples",
    "Files",
    "Hub",
    "Mixture",
    "ModelPairs",
    "Packaged",
    "Place",
    "Problem",
    "ReasoningGym",
    "Report",
    "RewardBench",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
