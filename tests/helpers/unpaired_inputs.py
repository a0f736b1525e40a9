"""Batches of labelled responses as plain lists of numbers, the inputs of a loss made from them, strategies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning import losses
from rlhf_lightning.losses import needs
from rlhf_lightning.types import GroupLoss, Moments
from tests.helpers.loss_inputs import Rows, losses_of, ragged
from tests.helpers.loss_strategies import BETA, REDUCTION, WEIGHT, floats

_INPUTS = {"policy", "reference", "desirable", "kl", "running", "weight"}  # Cringe also asks for top_k; see test_token
UNPAIRED = [name for name in losses_of("Ragged") if {"desirable"} <= needs(getattr(losses, name)) <= _INPUTS]


@dataclass
class Labelled:
    """Inputs of a loss of labelled responses, without tensors."""

    policy: Rows
    reference: Rows
    desirable: list[float]
    kl: float = 0.0
    running: tuple[float, float, float] = (0.0, 0.0, 0.0)  #: mean, standard deviation, count
    weight: list[float] = field(default_factory=list)
    mean_length: float | None = None  #: of all responses of the optimiser step

    def __len__(self) -> int:
        return len(self.policy)

    def pick(self, rows: list[int]) -> Labelled:
        """Some responses of the batch, which remains the optimiser step that they belong to."""
        whole = sum(map(len, self.policy)) / len(self)
        lists = {
            name: [value[i] for i in rows] if value else []
            for name, value in vars(self).items()
            if isinstance(value, list)
        }
        return replace(self, **lists, mean_length=self.mean_length or whole)


def inputs(batch: Labelled, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Everything a loss may ask for."""
    return {
        "policy": ragged(batch.policy, dtype, batch.mean_length),
        "reference": ragged(batch.reference, dtype),
        "desirable": torch.tensor(batch.desirable, dtype=dtype),
        "kl": torch.tensor(batch.kl, dtype=dtype),
        "running": Moments(*(torch.tensor(x, dtype=dtype) for x in batch.running)),
        "weight": torch.tensor(batch.weight or [1.0] * len(batch), dtype=dtype),
    }


def run(name: str, batch: Labelled, dtype: torch.dtype = torch.float64, **options: Any) -> GroupLoss:
    """A loss by name on a batch."""
    function, given = getattr(losses, name), inputs(batch, dtype)
    result: GroupLoss = function(**{need: given[need] for need in needs(function)}, **options)
    return result


def gradient(name: str, batch: Labelled, dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    """Gradient of the mean loss with respect to each token."""
    function, given = getattr(losses, name), inputs(batch, dtype)
    function(**{need: given[need] for need in needs(function)}, **options).loss.mean().backward()
    slope: Tensor = given["policy"].token.grad
    return slope


#: Every option of every loss; a test checks that none is missing.
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "kto": {"beta": BETA, "desirable_weight": WEIGHT, "undesirable_weight": WEIGHT},
    "bco": {"beta": BETA, "delta": st.sampled_from(["running", "zero"])},
    "apo_zero_unpaired": {"beta": BETA, "desirable_weight": WEIGHT, "undesirable_weight": WEIGHT},
    "unlikelihood": {"weight": WEIGHT, "reduction": REDUCTION},
}


@st.composite
def labelled(draw: st.DrawFn, least: int = 1, most: int = 5) -> Labelled:
    """Responses of one to four tokens; all of one label, often."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=least, max_size=most))
    log_prob = floats(-4.0, -0.0625)

    def rows() -> Rows:
        return [draw(st.lists(log_prob, min_size=n, max_size=n)) for n in lengths]

    return Labelled(
        policy=rows(),
        reference=rows(),
        desirable=[draw(st.sampled_from([0.0, 1.0])) for _ in lengths],
        kl=draw(floats(0.0, 5.0)),
        running=(draw(floats(-2.0, 2.0)), 1.0, 5.0),
        weight=[draw(floats(0.5, 4.0)) for _ in lengths],
    )
