"""OPRO's numeric demos behind the same protocols: least squares and a tour, no language model.

A candidate is a text (``w, b`` or a list of points), its only example is the objective, and the optimiser is a plain
function of the meta-prompt, which has to read it as a language model would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.prompting.search import Bench, Candidate, Trial

X = range(1, 51)
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def squares(w: int, b: int) -> float:
    """f(w, b) for y = 15 x + 14 without noise."""
    return float(sum((w * x + b - (15 * x + 14)) ** 2 for x in X))


def length(points: Sequence[tuple[float, float]], tour: Sequence[int]) -> float:
    """Of a closed tour."""
    return sum(math.dist(points[a], points[b]) for a, b in zip(tour, [*tour[1:], tour[0]], strict=True))


class Objective:
    """A task of one example: minus a number that is to be small; None for a text that is no solution."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __len__(self) -> int:
        return 1

    def trials(self, text: str, examples: Sequence[int]) -> list[Trial]:
        value = self.value(text)  # type: ignore[operator]
        return [Trial(None if value is None else -value)] * len(examples)

    def shown(self, example: int, placeholder: str) -> tuple[str, str]:
        return "", ""


@dataclass
class NumericSearch:
    """The best ``shown`` solutions, worst first, and the last bracketed list of integers in each reply."""

    steps: int = 500
    proposals: int = 8
    shown: int = 20
    size: int = 2

    def select(self, pool: Sequence[Candidate], step: int, bench: Bench) -> list[Candidate]:
        return sorted(pool, key=lambda one: one.mean)[-self.shown :]

    def propose(self, selected: Sequence[Candidate], step: int, bench: Bench) -> list[str]:
        listed = "\n".join(f"[{one.text}] value: {-one.mean:.0f}" for one in selected)
        replies = bench.ask(f"{listed}\nGive a new list in brackets with a smaller value.", self.proposals, step)
        solutions = [last_list(reply) for reply in replies]
        return [", ".join(map(str, one)) for one in solutions if one is not None and len(one) == self.size]

    def score(self, texts: Sequence[str], selected: Sequence[Candidate], step: int, bench: Bench) -> list[Candidate]:
        return [bench.candidate(text, step) for text in texts]


def last_list(text: str) -> list[int] | None:
    """The last list of integers in brackets; nothing is evaluated."""
    try:
        return [round(float(part)) for part in _BRACKETS.findall(text)[-1].split(",")]
    except (IndexError, ValueError):
        return None
