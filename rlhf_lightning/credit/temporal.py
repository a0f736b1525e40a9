"""Generalised advantage estimation: what each token of a response is worth beyond what the critic expected."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.credit.options import credit_function
from rlhf_lightning.credit.whitening import whiten
from rlhf_lightning.ops.segments import sum_dtype
from rlhf_lightning.options import Positive, Share
from rlhf_lightning.types import Ragged


@credit_function
def gae(
    token_reward: Ragged,
    value: Ragged,
    *,
    gamma: Share = 1.0,
    lam: Share = 0.95,
    whiten_rewards: bool = False,
    unbiased: bool = True,
    token_clip: Positive | None = None,
) -> dict[str, Ragged]:
    r"""Advantages of all tokens, computed from the last one back to the first.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}, \qquad V_{T+1} = 0

    :math:`V_t` is the value of the state that token t is chosen in, everything before it. The critic learns the returns
    :math:`A_t + V_t`.

    Source: "High-Dimensional Continuous Control Using Generalized Advantage Estimation", arXiv:1506.02438, eq. 11-16.
    Defaults: gamma 1, lambda 0.95, those of OpenAI's code for arXiv:1909.08593, of TRL and of trlX; OpenRLHF and verl
    have lambda 1.

    Args:
        token_reward: reward of each response token: the KL penalty, and the score at the last token.
        value: the critic's value at each token, as it was at the rollout.
        gamma: discount a token.
        lam: lambda, how far rewards are followed instead of values; 1: to the end.
        whiten_rewards: give the rewards of all tokens of the rollout variance 1; their mean stays (detail 18 of "The N
            Implementation Details"; on in OpenAI's code, off in TRL).
        unbiased: of that variance; see :func:`~rlhf_lightning.credit.whitening.whiten`.
        token_clip: bound of a token's absolute reward, penalty and score together (safe-rlhf: 50); None: none.

    Returns:
        ``advantage`` and ``returns``, one a response token.

    Raises:
        ValueError: an option is outside its range.
    """
    reward = token_reward
    if token_clip is not None:
        reward = reward.with_token(reward.token.clamp(-token_clip, token_clip))
    if whiten_rewards:
        reward = reward.with_token(whiten(reward.token, shift_mean=False, unbiased=unbiased))
    advantage = estimated(reward, value.token, gamma=gamma, lam=lam)
    return {"advantage": reward.with_token(advantage), "returns": reward.with_token(advantage + value.token)}


@credit_function
def lagrangian(
    token_reward: Ragged,
    value: Ragged,
    cost_reward: Ragged,
    cost_value: Ragged,
    multiplier: Float[Tensor, ""],
    *,
    gamma: Share = 1.0,
    lam: Share = 0.95,
    token_clip: Positive | None = 50.0,
) -> dict[str, Ragged]:
    r"""Advantages in reward less their price in cost, each by :func:`gae` with a critic of its own.

    .. math:: A = \frac{A^R - \lambda A^C}{1 + \lambda}

    Source: "Safe RLHF", arXiv:2310.12773, and its code (PKU-Alignment/safe-rlhf).
    Defaults: that code's.

    Args:
        token_reward: of the reward.
        value: of the reward's critic.
        cost_reward: of the cost: a cost at the last token, and the KL penalty with the other sign.
        cost_value: of the cost's critic.
        multiplier: lambda.
        gamma: discount a token.
        lam: of the estimator; not the multiplier.
        token_clip: bound of a token's absolute reward or cost, with the penalty; None: none.

    Returns:
        ``advantage``, ``returns`` and ``cost_returns``, one a response token.

    Raises:
        ValueError: an option is outside its range.
    """
    options: dict[str, Any] = {"gamma": gamma, "lam": lam, "token_clip": token_clip}
    reward, cost = gae(token_reward, value, **options), gae(cost_reward, cost_value, **options)
    price = multiplier.to(value.token)
    combined = (reward["advantage"].token - price * cost["advantage"].token) / (1 + price)
    return {
        "advantage": value.with_token(combined),
        "returns": reward["returns"],
        "cost_returns": cost["returns"],
    }


def estimated(
    reward: Ragged,
    value: Float[Tensor, " response_tokens"],
    *,
    gamma: float,
    lam: float,
    mask: Bool[Tensor, " response_tokens"] | None = None,
) -> Float[Tensor, " response_tokens"]:
    """The advantages of :func:`gae`, with tokens that the policy did not choose; accumulated in float64.

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
    rewards, values, advantages = (value.new_zeros(shape, dtype=sum_dtype(value.device)) for _ in range(3))
    chosen = torch.zeros(shape, dtype=torch.bool, device=value.device)
    rewards[column, row], values[column, row] = reward.token.to(rewards), value.to(values)
    chosen[column, row] = True if mask is None else mask
    following, ahead = rewards.new_zeros(reward.count), rewards.new_zeros(reward.count)
    for t in range(shape[0] - 1, -1, -1):  # all responses at once, one position at a time
        delta = rewards[t] + gamma * following - values[t]
        ahead = torch.where(chosen[t], delta + gamma * lam * ahead, ahead)
        following = torch.where(chosen[t], values[t], following)
        advantages[t] = ahead
    return advantages.masked_fill(~chosen, 0.0)[column, row].to(value)
