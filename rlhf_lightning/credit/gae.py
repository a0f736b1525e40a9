"""Generalised advantage estimation: what each token of a response is worth beyond what the critic expected."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.options import Share
from rlhf_lightning.types import Ragged


def gae(token_reward: Ragged, value: Ragged, *, gamma: Share = 1.0, lam: Share = 0.95) -> Ragged:
    r"""Advantages of all tokens, computed from the last one back to the first.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}, \qquad V_{T+1} = 0

    :math:`V_t` is the value of the state that token t is chosen in, everything before it.

    Source: "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv:1506.02438, eq. 11-16.
    Defaults: gamma 1, lambda 0.95, those of OpenAI's code for arXiv:1909.08593, of TRL and of trlX; OpenRLHF and verl
    have lambda 1.

    Args:
        token_reward: reward of each response token: the KL penalty, and the score at the last token.
        value: the critic's value at each token, as it was at the rollout.
        gamma: discount a token.
        lam: lambda, how far rewards are followed instead of values; 1: to the end.

    Returns:
        One advantage a response token; the returns that a critic learns are the advantages plus the values.

    Raises:
        ValueError: an option is outside its range.
    """
    return token_reward.with_token(estimated(token_reward, value.token, gamma=gamma, lam=lam))


def estimated(
    reward: Ragged,
    value: Float[Tensor, " response_tokens"],
    *,
    gamma: float,
    lam: float,
    mask: Bool[Tensor, " response_tokens"] | None = None,
) -> Float[Tensor, " response_tokens"]:
    """The advantages of :func:`gae`, with tokens that the policy did not choose.

    Args:
        reward: of each token.
        value: of each token.
        gamma: discount a token.
        lam: lambda.
        mask: False at tokens that the policy did not choose (the output of a tool): they are no steps. The advantage
            and the next value are carried over them unchanged, and they have advantage 0. None: all are chosen.
    """
    row, column = reward.sequence, reward.offset
    shape = (int(column.max()) + 1 if len(column) else 0, reward.count)
    rewards, values, advantages = (value.new_zeros(shape) for _ in range(3))
    chosen = torch.zeros(shape, dtype=torch.bool, device=value.device)
    rewards[column, row], values[column, row] = reward.token.to(value), value
    chosen[column, row] = True if mask is None else mask
    following, ahead = value.new_zeros(reward.count), value.new_zeros(reward.count)
    for t in range(shape[0] - 1, -1, -1):  # all responses at once, one position at a time
        delta = rewards[t] + gamma * following - values[t]
        ahead = torch.where(chosen[t], delta + gamma * lam * ahead, ahead)
        following = torch.where(chosen[t], values[t], following)
        advantages[t] = ahead
    return advantages.masked_fill(~chosen, 0.0)[column, row]
