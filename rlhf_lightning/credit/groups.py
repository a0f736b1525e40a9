r"""Advantages of critic-free methods: how much better a response is than others of its group, its prompt's samples.

Notation: :math:`R_i` is the reward of response i of a group of :math:`G`, :math:`\bar R` and :math:`s` the group's mean
and standard deviation (unbiased: divided by :math:`G - 1`). A reward that is nan (the reward function gave none)
belongs to no statistic, and its advantage is nan; the method turns that into 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.credit.options import credit_function
from rlhf_lightning.credit.returns import returns_to_go
from rlhf_lightning.ops.segments import segment_sum
from rlhf_lightning.options import NonNegative
from rlhf_lightning.types import Moments, Ragged


@credit_function
def grpo(
    reward: Float[Tensor, " responses"],
    group: Int[Tensor, " responses"],
    *,
    scale: Literal["group", "batch", "none"] = "group",
    eps: NonNegative = 1e-4,
) -> Float[Tensor, " responses"]:
    r"""Reward less the group's mean, over the standard deviation of the group, of the whole rollout, or over nothing.

    .. math:: A_i = \frac{R_i - \bar R}{s + \epsilon}

    Source: "DeepSeekMath", arXiv:2402.03300; scale none: "Understanding R1-Zero-Like Training" (Dr. GRPO),
    arXiv:2503.20783.
    Defaults: eps is that of TRL 1.16; verl adds 1e-6 and OpenRLHF 1e-9.
    Differences: none to TRL 1.16 (``scale_rewards``). A group of one response has advantage 0.

    Args:
        reward: of each response.
        group: of each response.
        scale: ``group`` divides by s + eps, ``batch`` by the standard deviation of the rewards of all groups + eps.
        eps: added to the standard deviation, in units of the reward.
    """
    mean, std, _ = group_moments(reward, group)
    centred = reward - mean
    if scale == "none":
        return centred
    return centred / ((std if scale == "group" else _spread(reward)) + eps)


@credit_function
def rloo(reward: Float[Tensor, " responses"], group: Int[Tensor, " responses"]) -> Float[Tensor, " responses"]:
    r"""Reward less the mean reward of the group's other responses (leave one out).

    .. math:: A_i = R_i - \frac{1}{G - 1}\sum_{j \ne i} R_j = \frac{G}{G - 1}(R_i - \bar R)

    Source: "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv:2402.14740.
    Defaults: there is nothing to choose.
    Differences: none to TRL 1.16 without ``normalize_advantages``.

    Args:
        reward: of each response.
        group: of each response.

    Raises:
        ValueError: no group has two responses that have rewards.
    """
    mean, _, count = group_moments(reward, group)
    if count.max() < 2:
        raise ValueError("rloo compares a response with the others of its group: set method.rollout.group_size >= 2")
    return (reward - mean) * count / (count - 1).clamp(min=1)


@credit_function
def grpo_process(
    step_reward: Ragged,
    group: Int[Tensor, " responses"],
    *,
    scale: Literal["group", "batch", "none"] = "group",
    eps: NonNegative = 1e-4,
) -> Ragged:
    r"""GRPO with rewards of steps: standardised over all steps of the group, and summed from each token to the end.

    .. math:: A_{i,t} = \sum_{s:\ \mathrm{end}(s) \ge t} \frac{r_{i,s} - \bar r}{\sigma_r + \epsilon}

    :math:`\bar r` and :math:`\sigma_r` are over the steps of all responses to the prompt. A token's advantage is that
    of its own step and of those behind it.

    Source: "DeepSeekMath", arXiv:2402.03300 (process supervision).
    Defaults: those of ``grpo``.
    Differences: TRL 1.16 has no rewards of steps.

    Args:
        step_reward: of each step, at the token that ends it; nan elsewhere.
        group: of each response.
        scale: as in ``grpo``, over steps.
        eps: added to the standard deviation, in units of the reward.

    Returns:
        One advantage a token; 0 behind the last step.
    """
    ends = ~step_reward.token.isnan()
    rewards = step_reward.token[ends]
    steps = grpo(rewards, group[step_reward.sequence[ends]], scale=scale, eps=eps)
    token = torch.zeros_like(step_reward.token).masked_scatter(ends, steps)
    return returns_to_go(step_reward.with_token(token))


@credit_function
def mean_baseline(
    reward: Float[Tensor, " responses"],
    running: Moments,
    *,
    baseline: Literal["none", "moving_average", "batch"] = "moving_average",
) -> Float[Tensor, " responses"]:
    r"""Reward less one number for all prompts: nothing, the mean of earlier rollouts, or this rollout's mean.

    .. math:: A_i = R_i - b

    Source: "Simple statistical gradient-following algorithms for connectionist reinforcement learning" (REINFORCE),
    Machine Learning 8, 1992; as a baseline to RLOO in arXiv:2402.14740.
    Defaults: the moving average of arXiv:2402.14740, here a plain average of all earlier rewards
    (``method.running_decay`` makes it forget).
    Differences: TRL 1.16 has no such baseline. In the first rollout the moving average is the rollout's own mean.

    Args:
        reward: of each response.
        running: moments of the rewards of earlier rollouts.
        baseline: b is 0 (``none``), the running mean (``moving_average``) or the mean of all rewards at hand
            (``batch``).
    """
    if baseline == "none":
        return reward
    earlier = baseline == "moving_average" and bool(running.count > 0)
    return reward - (running.mean.to(reward) if earlier else reward.nanmean())


def group_moments(
    reward: Float[Tensor, " responses"], group: Int[Tensor, " responses"]
) -> tuple[Float[Tensor, " responses"], Float[Tensor, " responses"], Float[Tensor, " responses"]]:
    """Mean, unbiased standard deviation and number of the rewards that are not nan, of each response's group.

    Args:
        reward: of each response; nan is left out.
        group: of each response.

    Returns:
        Three numbers a response. The standard deviation of a single reward is 0, and so are mean and number of none.
    """
    present = ~reward.isnan()
    filled, groups = reward.nan_to_num(0.0), int(group.max()) + 1 if len(group) else 0
    count = segment_sum(present.to(reward), group, groups)
    mean = segment_sum(filled, group, groups) / count.clamp(min=1)
    squares = segment_sum(torch.where(present, filled - mean[group], 0.0).square(), group, groups)
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    return mean[group], std[group], count[group]


def zero_spread(
    reward: Float[Tensor, " responses"], group: Int[Tensor, " responses"], tolerance: float = 1e-6
) -> Bool[Tensor, " groups"]:
    """Return whether all rewards of a group are the same, so that it does not tell which response is better.

    Args:
        reward: of each response; nan is left out.
        group: of each response.
        tolerance: highest standard deviation that counts as none.
    """
    _, std, _ = group_moments(reward, group)
    first = torch.searchsorted(group, torch.arange(int(group.max()) + 1 if len(group) else 0))
    return std[first] <= tolerance


def _spread(reward: Tensor) -> Tensor:
    """Unbiased standard deviation of all rewards that are not nan, a scalar; 0 of fewer than two."""
    values = reward[~reward.isnan()]
    return values.std() if len(values) > 1 else values.new_zeros(())
