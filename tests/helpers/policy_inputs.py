"""Sampled responses as numbers, for tests of policy-gradient losses and of credit functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import rlhf_lightning.losses as losses
from rlhf_lightning.ops.aggregation import token_aggregate
from rlhf_lightning.types import Ragged, TokenLoss

Rows = list[list[float]]


@dataclass
class Responses:
    """One row a response, one number a token."""

    policy: Rows
    old: Rows
    advantage: Rows


def ragged(rows: Rows, dtype: torch.dtype = torch.float64) -> Ragged:
    """Rows end to end; these responses are the whole step."""
    sequence = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
    return Ragged(torch.tensor([x for row in rows for x in row], dtype=dtype), sequence, len(rows))


def run(name: str, batch: Responses, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Ragged, TokenLoss]:
    """The policy's log-probs, which need gradients, and the output of the loss."""
    policy = ragged(batch.policy, dtype)
    policy.token.requires_grad_(True)
    inputs = {"policy": policy, "old": ragged(batch.old, dtype), "advantage": ragged(batch.advantage, dtype)}
    loss = getattr(losses, name)
    return policy, loss(**{key: inputs[key] for key in losses.needs(loss)}, **options)


def value_and_gradient(
    name: str,
    batch: Responses,
    how: str = "seq_mean_token_mean",
    length: float | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[float, Tensor]:
    """The aggregated loss and its gradient with respect to each log-prob."""
    policy, result = run(name, batch, dtype, **options)
    value = token_aggregate(result.token, policy.sequence, policy.count, how, length)
    (gradient,) = torch.autograd.grad(value, policy.token)
    return value.item(), gradient


_NUMBER = st.floats(-2.0, 2.0, allow_nan=False, width=32)


@st.composite
def responses(draw: st.DrawFn, *, same_advantage: bool = True, longest: int = 5) -> Responses:
    """A few responses whose policy moved by up to a nat a token."""
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=5))
    old = [[draw(st.floats(-3.0, -0.125, width=32)) for _ in range(n)] for n in lengths]
    policy = [[x + draw(st.floats(-1.0, 1.0, width=32)) for x in row] for row in old]
    if same_advantage:
        advantage = [[draw(_NUMBER)] * n for n in lengths]
    else:
        advantage = [[draw(_NUMBER) for _ in range(n)] for n in lengths]
    return Responses(policy, old, advantage)
