"""RLHF Lightning: alignment of language models on Lightning, transformers and Hydra.

Importing the package imports no torch, so ``rlhf --help`` and tab completion respond at once; the names below are
loaded when they are first used::

    from rlhf_lightning import compose, train
    train(compose("train", ["method=simpo", "model=tiny_random", "trainer=debug"]))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlhf_lightning.version import __version__

if TYPE_CHECKING:
    from rlhf_lightning.cli.compose import compose as compose
    from rlhf_lightning.cli.train import train as train
    from rlhf_lightning.conf_dir import conf_dir as conf_dir
    from rlhf_lightning.data.module import AlignmentDataModule as AlignmentDataModule
    from rlhf_lightning.methods import AlignmentModule as AlignmentModule
    from rlhf_lightning.methods import Preference as Preference
    from rlhf_lightning.methods import Supervised as Supervised

_HOME = {
    "AlignmentDataModule": "rlhf_lightning.data.module",
    "AlignmentModule": "rlhf_lightning.methods",
    "Preference": "rlhf_lightning.methods",
    "Supervised": "rlhf_lightning.methods",
    "compose": "rlhf_lightning.cli.compose",
    "conf_dir": "rlhf_lightning.conf_dir",
    "train": "rlhf_lightning.cli.train",
}

__all__ = [
    "AlignmentDataModule",
    "AlignmentModule",
    "Preference",
    "Supervised",
    "__version__",
    "compose",
    "conf_dir",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
