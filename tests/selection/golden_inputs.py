"""Rounds that golden rows are worked out for, and what such a row holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.types import DATA
from tests.helpers.selection_inputs import Group, SampleRound

X = math.nan
#: Which of a pair of the data's response and a sample was drawn.
SAMPLED = {"policy_sample": [0.0, 1.0]}
AB = SampleRound(
    score=[[1.0, 4.0, 3.0, 0.0], [2.0, 2.0, X, 2.0]],
    length=[[10.0, 20.0, 40.0, 30.0], [10.0, 20.0, 30.0, 40.0]],
    truncated=[[False, True, False, False], [False] * 4],
    same_as=[[0, DATA, 0, 3], [DATA, 1, 2, 3]],
)
#: corrections to DICE: gaps +50, +50 at alpha 0, +50, -50 at .01, -50, -50 at .02.
DICE = SampleRound(score=[[2.0, 1.2], [0.5, 0.9]], length=[[100.0, 50.0], [40.0, 90.0]])
FIVE = SampleRound(score=[[2.0, 1.0, 0.0, -1.0, -2.0]])
THREE = SampleRound(score=[[0.0, -1.0, -2.0]])
#: 0 beats 1, 1 beats 2 and 2 beats 0, and 0 wins most clearly; nobody compared 3 with anyone but 0.
CYCLE = SampleRound(
    score=[[0.0] * 4],
    preference=[[[0.5, 0.9, 0.4, 0.8], [0.1, 0.5, 0.7, X], [0.6, 0.3, 0.5, X], [0.2, X, X, 0.5]]],
)


@dataclass
class Golden:
    """Groups that a selector gives, how they were worked out, and what breaks them."""

    selector: str
    options: dict[str, Any]
    expected: list[Group] | None  #: None: a matter of chance
    worked: str
    catches: str
    samples: SampleRound = field(default_factory=lambda: AB)
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.selector}-{'-'.join(f'{k}={v}' for k, v in self.options.items())}"


def margin(value: float) -> dict[str, Any]:
    return {"margin": value}
