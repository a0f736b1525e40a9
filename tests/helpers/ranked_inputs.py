"""Batches of ranked lists as plain lists of numbers, the inputs of a loss made from them, and how to draw them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning import losses
from rlhf_lightning.losses import needs
from rlhf_lightning.types import GroupLoss, Moments
from tests.helpers.loss_inputs import Rows, losses_of, ragged
from tests.helpers.loss_strategies import BETA, WEIGHT, floats

RANKED = [name for name in losses_of("Ragged") if "present" in needs(getattr(losses, name))]
NAN = math.nan


@dataclass
class Item:
    """One response of a list."""

    policy: list[float]
    reference: list[float]
    score: float


@dataclass
class Lists:
    """Inputs of a loss of ranked lists, without tensors."""

    lists: list[list[Item]]
    running: tuple[float, float, float] = (0.0, 0.0, 0.0)  #: mean, standard deviation, count
    slots: int = field(default=0)  #: at least the longest list's length

    def __post_init__(self) -> None:
        self.slots = max(self.slots, *map(len, self.lists))

    def map(self, change: Callable[[Item], Item]) -> Lists:
        """The same lists with every response changed."""
        return replace(self, lists=[[change(item) for item in items] for items in self.lists])


def inputs(batch: Lists, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Everything a loss may ask for; the slots behind a shorter list are empty."""
    filled = [item for items in batch.lists for item in [*items, *[None] * (batch.slots - len(items))]]

    def rows(name: str) -> Rows:
        return [[] if item is None else getattr(item, name) for item in filled]

    shape = len(batch.lists), batch.slots
    score = torch.tensor([NAN if item is None else item.score for item in filled], dtype=dtype).view(shape)
    return {
        "policy": ragged(rows("policy"), dtype),
        "reference": ragged(rows("reference"), dtype),
        "score": score,
        "win_probability": score,
        "present": torch.tensor([item is not None for item in filled]).view(shape),
        "running": Moments(*(torch.tensor(x, dtype=dtype) for x in batch.running)),
    }


def run(name: str, batch: Lists, dtype: torch.dtype = torch.float64, **options: Any) -> GroupLoss:
    """A loss by name on a batch."""
    function, given = getattr(losses, name), inputs(batch, dtype)
    result: GroupLoss = function(**{need: given[need] for need in needs(function)}, **options)
    return result


def gradient(name: str, batch: Lists, dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    """Gradient of the mean loss with respect to each token."""
    function, given = getattr(losses, name), inputs(batch, dtype)
    function(**{need: given[need] for need in needs(function)}, **options).loss.mean().backward()
    slope: Tensor = given["policy"].token.grad
    return slope


LIST_REDUCTION = st.sampled_from(["response_mean", "sum"])

#: Every option of every loss; a test checks that none is missing.
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "pro": {
        "aggregate": st.sampled_from(["mean", "sum"]),
        "temperature": st.sampled_from(["dynamic", "fixed"]),
        "nll_weight": WEIGHT,
        "nll_scale": st.sampled_from(["squared_length", "none"]),
        "nll_reduction": LIST_REDUCTION,
    },
    "rrhf": {
        "rank_weight": WEIGHT,
        "length_penalty": WEIGHT,
        "nll_weight": WEIGHT,
        "nll_reduction": LIST_REDUCTION,
    },
    "plackett_luce": {"beta": BETA},
    "exo_k": {"beta": BETA, "score_beta": floats(0.25, 2.0)},
    "nash_md": {"beta": WEIGHT, "kl": st.sampled_from(["sequence", "reward_to_go", "token"])},
    "best_of_n": {"top_fraction": st.sampled_from([0.0, 0.5, 0.67, 1.0]), "reduction": LIST_REDUCTION},
    "reward_weighted": {
        "beta": floats(0.25, 2.0),
        "normalise": st.sampled_from(["group", "running"]),
        "max_weight": floats(0.5, 20.0),
        "reduction": LIST_REDUCTION,
    },
}


@st.composite
def ranked(draw: st.DrawFn, least: int = 1, most: int = 3, longest: int = 4) -> Lists:
    """Lists of one to four responses, often with ties, in no order."""
    log_prob = floats(-4.0, -0.0625)

    def item() -> Item:
        length = draw(st.integers(1, 3))
        policy, reference = (draw(st.lists(log_prob, min_size=length, max_size=length)) for _ in range(2))
        return Item(policy, reference, draw(st.sampled_from([-1.0, 0.0, 0.5, 0.75, 2.0])))

    count = draw(st.integers(least, most))
    lists = [[item() for _ in range(draw(st.integers(1, longest)))] for _ in range(count)]
    return Lists(lists, (draw(floats(-1.0, 1.0)), 1.0, draw(st.sampled_from([0.0, 5.0]))))
