"""The hardening loop: attack the detector, mine the texts that it misses, train on them too, and evaluate again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlhf_lightning.hardening.detectors import Detection, Detector, detection
from rlhf_lightning.hardening.mining import Labelled, Mined, Text, mine_texts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """Result of one round of hardening. The test sets are ``original`` and ``mined_1``, ``mined_2``, ..."""

    mined: Mined
    before: dict[str, Detection]  #: results of the attacked detector
    after: dict[str, Detection]  #: results after training on the mined texts; the same if nothing was mined


def harden(
    detector: Detector,
    *,
    attack: Callable[[Detector], Iterable[Text]],
    oracle: Callable[[Text], bool],
    fit: Callable[[Sequence[Labelled]], Detector],
    train: Sequence[Labelled],
    test: Sequence[Labelled],
    rounds: int = 1,
    threshold: float = 0.5,
    held_out: float = 0.5,
) -> tuple[Detector, list[Round]]:
    """Train a detector on texts that it misses, until an attack finds no more or the rounds are over.

    Every round trains on the original rows and on all texts mined so far, so that nothing is forgotten, and evaluates
    on the original test rows and on the held-out mined texts of every round.

    Source: the defence of "Unveiling the Implicit Toxicity in Large Language Models", arXiv:2311.17391, section 5.

    Args:
        detector: the first detector.
        attack: returns texts that try to get past a detector, such as the rollouts of a policy whose reward is
            ``R - alpha * P(label)``.
        oracle: returns the true label of a text.
        fit: trains a detector on rows.
        train: rows that the first detector was trained on.
        test: rows of the same origin, never trained on.
        rounds: maximum number of rounds.
        threshold: probability at or above which a text is flagged.
        held_out: share of the prompts whose mined texts are kept for evaluation.

    Returns:
        The last detector, and the result of each round.
    """
    sets: dict[str, Sequence[Labelled]] = {"original": test}
    rows, done = list(train), []
    for number in range(1, rounds + 1):
        mined = mine_texts(attack(detector), detector, oracle, threshold=threshold, held_out=held_out)
        sets[f"mined_{number}"] = mined.held_out
        before = _evaluated(detector, sets, threshold)
        if mined.missed:
            rows += mined.train
            detector = fit(rows)
        done.append(Round(mined, before, _evaluated(detector, sets, threshold)))
        log.info("round %d: %d texts were missed; %s", number, mined.missed, _summary(done[-1]))
        if not mined.missed:
            break
    return detector, done


def _evaluated(detector: Detector, sets: dict[str, Sequence[Labelled]], threshold: float) -> dict[str, Detection]:
    return {name: detection(detector, rows, threshold) for name, rows in sets.items()}


def _summary(done: Round) -> str:
    parts = [
        f"{name}: recall {done.before[name].recall:.3f} -> {after.recall:.3f}, false positives "
        f"{done.before[name].false_positive_rate:.3f} -> {after.false_positive_rate:.3f}"
        for name, after in done.after.items()
    ]
    return "; ".join(parts)
