r"""From one number a token to one number a response whose mean is the loss: the ways of policy-gradient methods.

For the per-token numbers :math:`\ell_{i,t}` of B responses of :math:`T_i` tokens:

* ``token_mean``: :math:`\sum_{i,t}\ell_{i,t} / \sum_i T_i` over the whole optimiser step (DAPO, verl)
* ``local_token_mean``: the same over one micro-batch, micro-batches averaged (TRL's ``bnpo`` and PPO); the only one
  that depends on how a step is cut (trainer.accumulate_grad_batches x devices)
* ``seq_mean_token_mean``: :math:`\frac1B\sum_i \frac1{T_i}\sum_t\ell_{i,t}` (GRPO, GSPO, safe-rlhf)
* ``seq_mean_token_sum``: :math:`\frac1B\sum_{i,t}\ell_{i,t}` (REINFORCE, RLOO)
* ``seq_mean_token_sum_norm``: :math:`\frac1B\sum_{i,t}\ell_{i,t} / L` with a constant L (Dr. GRPO)
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.ops.segments import segment_mean, segment_sum

Aggregation = Literal[
    "token_mean", "local_token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"
]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


def aggregate(
    token: Float[Tensor, " n"],
    sequence: Int[Tensor, " n"],
    count: int,
    how: str,
    *,
    step_length: Tensor | float,
    length: float | None = None,
) -> Float[Tensor, " count"]:
    """One number a response, so that the mean over responses is the aggregate.

    The mean is over the responses of the whole optimiser step; for ``local_token_mean`` over those at hand, since its
    denominator is that of a micro-batch.

    Args:
        token: one number a token.
        sequence: the response of each token, 0 .. count - 1.
        count: responses, those without tokens included.
        how: one of ``AGGREGATIONS``.
        step_length: mean tokens of a response over the whole step, for ``token_mean``.
        length: L, for ``seq_mean_token_sum_norm``.

    Raises:
        ValueError: ``how`` is unknown, or it needs a length and there is none.
    """
    check_aggregation(how, length)
    if how == "seq_mean_token_mean":
        return segment_mean(token, sequence, count)
    total = segment_sum(token, sequence, count)
    if how == "token_mean":
        return total / step_length
    if how == "local_token_mean":
        return total * (count / max(len(token), 1))
    return total if length is None or how == "seq_mean_token_sum" else total / length


def check_aggregation(how: str, length: float | None) -> None:
    """Refuse an unknown aggregation, and one by a constant that was not given.

    Raises:
        ValueError: naming the options of a method.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"method.policy_loss.aggregation={how!r}; it can be {', '.join(AGGREGATIONS)}")
    if how == "seq_mean_token_sum_norm" and (length is None or not length > 0):
        raise ValueError(
            "method.policy_loss.aggregation=seq_mean_token_sum_norm divides by a constant: "
            f"method.policy_loss.aggregation_length={length} must be positive, such as the length limit of a response"
        )


def token_aggregate(
    token: Float[Tensor, " n"], sequence: Int[Tensor, " n"], count: int, how: str, length: float | None = None
) -> Float[Tensor, ""]:
    """The aggregate of responses that are the whole step, a scalar."""
    step_length = torch.tensor(len(token) / max(count, 1), device=token.device)
    return aggregate(token, sequence, count, how, step_length=step_length, length=length).mean()
