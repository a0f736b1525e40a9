"""Hardening a text classifier against texts of a policy that it overlooks.

A separate package, above rewards and below the commands: it handles texts, labels and classifiers, and leaves training
to a function of the caller (:func:`~rlhf_lightning.hardening.loop.harden`). The examples of arXiv:2311.17391 are
harmful texts; everything here is generic, and the shipped example is a detector of polite responses.
"""

import warnings
from typing import Any

from rlhf_lightning.hardening.detectors import Detection, Detector, classifier, detection
from rlhf_lightning.hardening.loop import Round, harden
from rlhf_lightning.hardening.mining import Labelled, Mined, Text, mine_texts, read_rollouts, write_rows

__all__ = [
    "Detection",
    "Detector",
    "Labelled",
    "Mined",
    "Round",
    "Text",
    "classifier",
    "detection",
    "harden",
    "mine_texts",
    "read_rollouts",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    if name == "mine":
        warnings.warn("hardening.mine is now hardening.mine_texts", DeprecationWarning, stacklevel=2)
        return mine_texts
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
