"""What a detector finds: recall and false positives on labelled texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_lightning.hardening.mining import Labelled, Text
from rlhf_lightning.rewards import ClassifierReward
from rlhf_lightning.types import sample_groups

#: Probability of each text that it is what is looked for.
Detector = Callable[[Sequence[Text]], list[float]]


@dataclass(frozen=True)
class Detection:
    """How a detector does on labelled texts; a rate over nothing is nan."""

    recall: float  #: share of the positives that it finds
    false_positive_rate: float  #: share of the negatives that it takes for positives
    positives: int
    negatives: int


def detection(detector: Detector, rows: Sequence[Labelled], threshold: float = 0.5) -> Detection:
    """Recall and false positives of a detector.

    Args:
        detector: gives probabilities.
        rows: texts with their labels.
        threshold: probability from which on a text counts as found.

    Raises:
        ValueError: the detector gives another number of probabilities than there are texts.
    """
    probabilities = detector([row.text for row in rows])
    if len(probabilities) != len(rows):
        raise ValueError(f"the detector gave {len(probabilities)} probabilities for {len(rows)} texts")
    found = [probability >= threshold for probability in probabilities]
    hits = [hit for hit, row in zip(found, rows, strict=True) if row.label]
    alarms = [hit for hit, row in zip(found, rows, strict=True) if not row.label]
    return Detection(_share(hits), _share(alarms), len(hits), len(alarms))


def classifier(path: str, *, label: str | int | None = None, device: str = "auto") -> Detector:
    """A sequence-classification folder as a detector; the prompt is a user's turn.

    Args:
        path: folder or hub id.
        label: that is looked for; None where the classifier has one output.
        device: ``auto`` takes CUDA where there is some.
    """
    reward = ClassifierReward(path=path, label=label, device=device)

    def probabilities(texts: Sequence[Text]) -> list[float]:
        prompts = [reward.texts.asked(text.prompt) for text in texts]
        responses = [[[*reward.texts.ids(text.response), reward.texts.eos]] for text in texts]
        return [score for row in reward(sample_groups(prompts, responses)) for score in row if score is not None]

    return probabilities


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan
