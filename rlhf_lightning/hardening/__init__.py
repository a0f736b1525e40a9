"""Hardening a text classifier against what a policy found that it overlooks.

A package of its own, above rewards and below the commands: it knows texts, labels and classifiers, and nothing of how
one is trained, which its caller gives as a function (:func:`~rlhf_lightning.hardening.loop.harden`). The examples of
arXiv:2311.17391 are harmful texts; everything here is generic, and what ships with it is a detector of polite answers.
"""

from rlhf_lightning.hardening.detectors import Detection, Detector, classifier, detection
from rlhf_lightning.hardening.loop import Round, harden
from rlhf_lightning.hardening.mining import Labelled, Mined, Text, mine, read_rollouts, write_rows

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
    "mine",
    "read_rollouts",
    "write_rows",
]
