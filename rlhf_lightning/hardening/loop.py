"""The loop: attack the detector, mine what it misses, train it on that too, and look at all sets again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlhf_lightning.hardening.detectors import Detection, Detector, detection
from rlhf_lightning.hardening.mining import Labelled, Mined, Text, mine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """What one round of hardening did. The sets are ``original`` and ``mined_1``, ``mined_2``, ..."""

    mined: Mined
    before: dict[str, Detection]  #: of the detector that was attacked
    after: dict[str, Detection]  #: of the one that was trained on what was mined; the same where nothing was


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
    """Train a detector on what it overlooks, until an attack finds nothing more or the rounds are over.

    Every round trains on the original rows and on all that was mined so far, so that nothing is forgotten, and
    evaluates on the original test rows and on the held-out part of every round's.

    Source: the defence of "Unveiling the Implicit Toxicity in Large Language Models", arXiv:2311.17391, section 5.

    Args:
        detector: to begin with.
        attack: texts that are meant to get past a detector, such as the rollouts of a policy whose reward is
            ``R - alpha * P(label)``.
        oracle: says what a text really is.
        fit: trains a detector on rows.
        train: what the first detector was trained on.
        test: rows of the same origin that nothing is trained on.
        rounds: at most.
        threshold: probability from which on a text counts as found.
        held_out: share of the prompts whose mined texts are kept for evaluation.

    Returns:
        The last detector, and what each round did.
    """
    sets: dict[str, Sequence[Labelled]] = {"original": test}
    rows, done = list(train), []
    for number in range(1, rounds + 1):
        mined = mine(attack(detector), detector, oracle, threshold=threshold, held_out=held_out)
        sets[f"mined_{number}"] = mined.held_out
        before = _evaluated(detector, sets, threshold)
        if mined.missed:
            rows += mined.train
            detector = fit(rows)
        done.append(Round(mined, before, _evaluated(detector, sets, threshold)))
        log.info("round %d: %d texts were missed; %s", number, mined.missed, _said(done[-1]))
        if not mined.missed:
            break
    return detector, done


def _evaluated(detector: Detector, sets: dict[str, Sequence[Labelled]], threshold: float) -> dict[str, Detection]:
    return {name: detection(detector, rows, threshold) for name, rows in sets.items()}


def _said(done: Round) -> str:
    parts = [
        f"{name}: recall {done.before[name].recall:.3f} -> {after.recall:.3f}, false positives "
        f"{done.before[name].false_positive_rate:.3f} -> {after.false_positive_rate:.3f}"
        for name, after in done.after.items()
    ]
    return "; ".join(parts)
