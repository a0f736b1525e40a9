"""Rows to batches: sources, formats, chat templates, checks, packing and the data module.

Names are loaded when they are first used, so that looking at data needs no Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlhf_lightning.renamed import renamed

if TYPE_CHECKING:
    from rlhf_lightning.data.batches.packing import pack as pack
    from rlhf_lightning.data.batches.plan import ProcessShare as ProcessShare
    from rlhf_lightning.data.module import AlignmentDataModule as AlignmentDataModule
    from rlhf_lightning.data.rows.problems import DataError as DataError
    from rlhf_lightning.data.rows.problems import DataReport as DataReport
    from rlhf_lightning.data.rows.problems import Problem as Problem
    from rlhf_lightning.data.sources.binarized import Binarized as Binarized
    from rlhf_lightning.data.sources.files import Files as Files
    from rlhf_lightning.data.sources.files import Packaged as Packaged
    from rlhf_lightning.data.sources.hub import Hub as Hub
    from rlhf_lightning.data.sources.mixture import Mixture as Mixture
    from rlhf_lightning.data.sources.model_pairs import ModelPairs as ModelPairs
    from rlhf_lightning.data.sources.reasoning_gym import ReasoningGym as ReasoningGym
    from rlhf_lightning.data.sources.rewardbench import RewardBench as RewardBench
    from rlhf_lightning.data.spec import DataSpec as DataSpec
    from rlhf_lightning.data.tokens.examples import Examples as Examples

_HOME = {
    "AlignmentDataModule": "rlhf_lightning.data.module",
    "Binarized": "rlhf_lightning.data.sources.binarized",
    "DataError": "rlhf_lightning.data.rows.problems",
    "DataSpec": "rlhf_lightning.data.spec",
    "Examples": "rlhf_lightning.data.tokens.examples",
    "Files": "rlhf_lightning.data.sources.files",
    "Hub": "rlhf_lightning.data.sources.hub",
    "Mixture": "rlhf_lightning.data.sources.mixture",
    "ModelPairs": "rlhf_lightning.data.sources.model_pairs",
    "Packaged": "rlhf_lightning.data.sources.files",
    "ProcessShare": "rlhf_lightning.data.batches.plan",
    "Problem": "rlhf_lightning.data.rows.problems",
    "ReasoningGym": "rlhf_lightning.data.sources.reasoning_gym",
    "DataReport": "rlhf_lightning.data.rows.problems",
    "RewardBench": "rlhf_lightning.data.sources.rewardbench",
    "pack": "rlhf_lightning.data.batches.packing",
}

__all__ = [
    "AlignmentDataModule",
    "Binarized",
    "DataError",
    "DataReport",
    "DataSpec",
    "Examples",
    "Files",
    "Hub",
    "Mixture",
    "ModelPairs",
    "Packaged",
    "Problem",
    "ProcessShare",
    "ReasoningGym",
    "RewardBench",
    "pack",
]


_earlier = renamed(__name__, {"Place": "ProcessShare", "Report": "DataReport"}, stacklevel=3)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        return _earlier(name)
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
