"""Evaluation of a detector: recall and false positives on labelled texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_lightning.hardening.mining import Labelled, Text
from rlhf_lightning.rewards import ClassifierReward
from rlhf_lightning.types import sample_groups

#: Gives each text's probability of being a positive.
Detector = Callable[[Sequence[Text]], list[float]]


@dataclass(frozen=True)
class Detection:
    """Quality of a detector on labelled texts; a rate over no texts is nan."""

    recall: float  #: share of the positives that are flagged
    false_positive_rate: float  #: share of the negatives that are flagged
    positives: int
    negatives: int


def detection(detector: Detector, rows: Sequence[Labelled], threshold: float = 0.5) -> Detection:
    """Measure recall and false positives of a detector.

    Args:
        detector: gives probabilities.
        rows: texts with their labels.
        threshold: probability at or above which a text is flagged.

    Raises:
        ValueError: the number of probabilities differs from the number of texts.
    """
    probabilities = detector([row.text for row in rows])
    if len(probabilities) != len(rows):
        raise ValueError(f"the detector returned {len(probabilities)} probabilities for {len(rows)} texts")
    flagged = [probability >= threshold for probability in probabilities]
    hits = [flag for flag, row in zip(flagged, rows, strict=True) if row.label]
    alarms = [flag for flag, row in zip(flagged, rows, strict=True) if not row.label]
    return Detection(_share(hits), _share(alarms), len(hits), len(alarms))


def classifier(path: str, *, label: str | int | None = None, device: str = "auto") -> Detector:
    """Load a sequence classifier as a detector; the prompt is passed as a user's turn.

    Args:
        path: folder or hub id.
        label: label of the positives; None if the classifier has one output.
        device: ``auto`` uses CUDA if it is available.
    """
    reward = ClassifierReward(path=path, label=label, device=device)

    def probabilities(texts: Sequence[Text]) -> list[float]:
        prompts = [reward.texts.asked(text.prompt) for text in texts]
        responses = [[[*reward.texts.ids(text.response), reward.texts.eos]] for text in texts]
        return [score for row in reward(sample_groups(prompts, responses)) for score in row if score is not None]

    return probabilities


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan
