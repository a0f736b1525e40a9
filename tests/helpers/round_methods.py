"""Methods that learn from win matrices, from two policies' samples or from labels, as short runs of rounds.

A random model ends no response, and the package's selectors let none win that was cut off: here nothing counts as cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.lessons import Rounds
from rlhf_lightning.losses import kto, nash_md, sppo_soft, xpo
from rlhf_lightning.methods import Preference, Ranked, Unpaired
from rlhf_lightning.rewards.win_matrix import matrix_of, mean_wins
from rlhf_lightning.schedules import cosine
from rlhf_lightning.selection import policy_vs_reference, win_probability, win_rates
from rlhf_lightning.selection.options import makes, selector
from rlhf_lightning.types import Draw, SampleGroup, Selected
from tests.helpers.online import builder
from tests.helpers.rounds import rounds_of


class Circle:
    """Responses beat one another by the remainders of their first tokens: 0 beats 1 beats 2 beats 0."""

    name = "circle"

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        return [mean_wins(matrix) for matrix in self.win_matrix(groups)]

    def win_matrix(self, groups: Sequence[SampleGroup]) -> list[list[list[float | None]]]:
        return [self._matrix([ids[0] for ids in group.responses]) for group in groups]

    def _matrix(self, first: list[int]) -> list[list[float | None]]:
        wins = [0.5, 0.9, 0.1]
        pairs = [(i, j, wins[(first[j] - first[i]) % 3]) for i in range(len(first)) for j in range(i)]
        return matrix_of(len(first), pairs)


def _uncut(table: Tensor) -> Tensor:
    return torch.zeros(table.shape[:2], dtype=torch.bool)


@selector
@makes("preference")
def judged(preference: Tensor) -> Selected:
    return win_probability(_uncut(preference), preference, include_self=False)


@selector
@makes("preference")
def judged_with_self(preference: Tensor) -> Selected:
    return win_probability(_uncut(preference), preference)


@selector
@makes("ranked")
def rated(preference: Tensor, source: Tensor) -> Selected:
    return win_rates(_uncut(preference), source, preference)


@selector
@makes("preference")
def versus(score: Tensor, source: Tensor) -> Selected:
    return policy_vs_reference(score, _uncut(score), source, ties="keep")


@selector
@makes("unpaired", samples=1)
def halves(score: Tensor) -> Selected:
    """All samples, good above the round's median."""
    prompt, sample = torch.ones_like(score).nonzero(as_tuple=True)
    return Selected(prompt, sample[:, None], {"desirable": (score > score.median()).float().view(-1, 1)})


@dataclass(frozen=True)
class RoundMethod:
    """A method with its rounds."""

    method: Callable[..., Any]
    loss: Callable[..., Any]
    rounds: Rounds

    def module(self, make: Callable[..., Any] = builder, optimizer: Any = None) -> Any:
        maker = optimizer or partial(torch.optim.AdamW, lr=1e-2)
        return self.method(make(), self.loss, maker, partial(cosine, warmup=0.2))


METHODS = {
    "sppo": RoundMethod(
        Preference,
        partial(sppo_soft, beta=1.0),
        rounds_of(selector=judged, reference="round_start", carry="previous", inner_epochs=2),
    ),
    "nash_md": RoundMethod(
        Ranked, nash_md, rounds_of(selector=rated, draws=[Draw(n=2), Draw("mixture", 2, mix=0.5)], minibatches=1)
    ),
    "xpo": RoundMethod(
        Preference,
        partial(xpo, alpha=0.01),
        rounds_of(selector=versus, draws=[Draw(n=2), Draw("reference", n=2)], minibatches=1),
    ),
    "kto": RoundMethod(Unpaired, kto, rounds_of(selector=halves, reference="previous_round", inner_epochs=2)),
}
