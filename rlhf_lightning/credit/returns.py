r"""Advantages from future rewards: rewards of tokens summed to the response's end, without a critic.

Notation: :math:`r_t` is the reward of a token (the KL penalty, and the response's reward at its last token),
:math:`G_t = \sum_{s \ge t}\gamma^{s - t} r_s` its return.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.credit.options import credit_function
from rlhf_lightning.credit.whitening import whiten
from rlhf_lightning.ops.segments import segment_sum, sum_dtype
from rlhf_lightning.options import Share
from rlhf_lightning.types import Ragged


@credit_function
def reinforce_pp(token_reward: Ragged, *, gamma: Share = 1.0, normalize: bool = True, unbiased: bool = False) -> Ragged:
    r"""REINFORCE++: returns, standardised over all tokens of the rollout.

    .. math:: A_t = \frac{G_t - \mu}{\sqrt{\sigma^2 + 10^{-8}}}

    Source: "REINFORCE++", arXiv:2501.03262.
    Defaults: gamma 1, the variance divided by the number of tokens, those of OpenRLHF.
    Differences: TRL 1.16 has no such estimator.

    Args:
        token_reward: of each token.
        gamma: discount a token.
        normalize: False: the plain returns.
        unbiased: divide the squares by one less than the number of tokens.
    """
    returns = returns_to_go(token_reward, gamma)
    return returns.with_token(whiten(returns.token, unbiased=unbiased)) if normalize else returns


@credit_function
def remax(token_reward: Ragged, baseline: Float[Tensor, " responses"]) -> Ragged:
    r"""ReMax: returns less the reward of the response that greedy decoding gives to the same prompt.

    .. math:: A_t = G_t - R(x, y_\mathrm{greedy})

    Source: "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language
    Models", arXiv:2310.10505.
    Defaults: there is nothing to choose; no discount.
    Differences: none to verl's ``remax``, whose greedy reward has no KL penalty either. The authors' code
    (liziniu/ReMax) gives a token its own KL penalty only, not those of the tokens behind it, and discounts the
    difference of rewards, clipped at 5, once for every token from there to the end, the last one included:
    :math:`A_t = -\beta\,\mathrm{kl}_t + \gamma^{T - t + 1}(R - R_\mathrm{greedy})` with gamma 0.99. TRL 1.16 has no
    such estimator.

    Args:
        token_reward: of each token.
        baseline: reward of the greedy response to each response's prompt (``rollout.greedy_baseline``).
    """
    returns = returns_to_go(token_reward)
    return returns.with_token(returns.token - baseline.nan_to_num(0.0)[returns.sequence])


@credit_function
def reinforce_pp_baseline(
    reward: Float[Tensor, " responses"],
    group: Int[Tensor, " responses"],
    length: Int[Tensor, " responses"],
    *,
    normalize: bool = True,
    unbiased: bool = False,
) -> Float[Tensor, " responses"]:
    r"""REINFORCE++-baseline: reward less the group's mean, standardised over all tokens of the rollout.

    .. math:: A_i = \frac{R_i - \bar R}{\sqrt{\sigma^2 + 10^{-8}}}

    Unlike GRPO's, the standard deviation is one for all groups, so easy and hard prompts keep their weights.

    Source: "REINFORCE++", arXiv:2501.03262.
    Defaults: those of OpenRLHF's ``reinforce_baseline``.
    Differences: TRL 1.16 (``scale_rewards: batch``) divides by the standard deviation of the rewards themselves, over
    responses.

    Args:
        reward: of each response.
        group: of each response.
        length: of each response: a response counts once for each of its tokens.
        normalize: False: the centred rewards.
        unbiased: divide the squares by one less than the number of tokens.
    """
    present, filled, groups = ~reward.isnan(), reward.nan_to_num(0.0), int(group.max()) + 1 if len(group) else 0
    count = segment_sum(present.to(reward), group, groups).clamp(min=1)
    centred = (reward - (segment_sum(filled, group, groups) / count)[group]).masked_fill(~present, 0.0)
    if not normalize or not int(length.sum()):
        return centred
    white = whiten(torch.repeat_interleave(centred, length), unbiased=unbiased)
    # Every token of a response has the same number, so the first one is taken; a response without tokens needs none.
    return white[(length.cumsum(0) - length).clamp(max=len(white) - 1)]


def returns_to_go(token: Ragged, gamma: float = 1.0) -> Ragged:
    """Discounted sum of each token's number and those behind it in its response, accumulated in float64.

    Args:
        token: one number a token.
        gamma: discount a token.
    """
    row, column = token.sequence, token.offset
    width = int(column.max()) + 1 if len(column) else 0
    grid = token.token.new_zeros(width, token.count, dtype=sum_dtype(token.token.device))
    grid[column, row] = token.token.to(grid)
    for t in range(width - 2, -1, -1):  # all responses at once, one position at a time
        grid[t] += gamma * grid[t + 1]
    return token.with_token(grid[column, row].to(token.token))
