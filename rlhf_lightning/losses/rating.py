"""Losses of reward heads that look at one response at a time: labels, ratings, and the steps of a solution.

They return one number a response; the method divides by the responses of the whole optimiser step. The diagnostics are
``accuracy`` and the mean reward of good and of bad ones, where a soft label counts as good from 1/2. A loss with
options raises ValueError when one is not allowed.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import loss_function
from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.types import GroupLoss, Ragged


@loss_function
def binary_discrimination(reward: Float[Tensor, " responses"], desirable: Float[Tensor, " responses"]) -> GroupLoss:
    r"""Binary discrimination: tell good from bad responses one by one, by logistic regression on the reward.

    .. math:: -d\log\sigma(r) - (1 - d)\log\sigma(-r)

    Source: "A General Language Assistant as a Laboratory for Alignment", arXiv:2112.00861, which compares it with
    imitation and with ranked preference models.
    Defaults: none.
    Differences: none known.

    Args:
        reward: of each response, in logits.
        desirable: 1 for a good response, 0 for a bad one; a number between them is a soft label.

    Returns:
        One loss a response, and its reward.
    """
    loss = F.binary_cross_entropy_with_logits(reward, desirable.to(reward.dtype), reduction="none")
    return GroupLoss(loss, reward.detach(), diagnostics=_by_label(reward, desirable))


@loss_function
def process_reward(
    step_reward: Ragged,
    step_label: Float[Tensor, " response_tokens"],
    *,
    reduction: Literal["step_mean", "solution_mean"] = "step_mean",
) -> GroupLoss:
    r"""Process reward model: is each step of a solution right, read at the step's last token.

    .. math:: -\frac{1}{N}\sum_i\sum_k c_{ik}\log\sigma(r_{ik}) + (1 - c_{ik})\log\sigma(-r_{ik})

    with label :math:`c_{ik}` of step k of solution i and N the steps of the whole optimiser step.

    Source: "Let's Verify Step by Step", arXiv:2305.20050; soft labels as in "Math-Shepherd", arXiv:2312.08935.
    Defaults: the mean over steps, as a token classifier has it.
    Differences: one logit a step, where a token classifier of two classes has two; their difference is the logit. TRL
    had such a classifier until 1.13 (``experimental.prm``); 1.14 dropped it.

    Args:
        step_reward: logit at the last token of each step, solution by solution.
        step_label: 1 right, 0 wrong, or a probability in between.
        reduction: ``step_mean`` weighs every step of the optimiser step equally, ``solution_mean`` every solution.

    Returns:
        One loss a solution, whose mean over the optimiser step is the loss; its reward is the mean of its steps'.

    Raises:
        ValueError: an option is not one of the allowed ones.
    """
    step = F.binary_cross_entropy_with_logits(
        step_reward.token, step_label.to(step_reward.token.dtype), reduction="none"
    )
    losses = step_reward.with_token(step)
    return GroupLoss(
        losses.mean() if reduction == "solution_mean" else losses.sum() / losses.step_length,
        step_reward.mean().detach(),
        diagnostics=_by_label(step_reward.token, step_label),
    )


@loss_function
def attribute_regression(
    rating: Float[Tensor, "responses attributes"], attributes: Float[Tensor, "responses attributes"]
) -> GroupLoss:
    r"""Multi-attribute regression: squared error of every rating that the data has.

    .. math:: \frac{1}{|A_i|}\sum_{a \in A_i} (r_{ia} - y_{ia})^2

    with :math:`A_i` the attributes for which response i is rated.

    Source: the first stage of ArmoRM, "Interpretable Preferences via Multi-Objective Reward Modeling and
    Mixture-of-Experts", arXiv:2406.12845.
    Defaults: none.
    Differences: the paper fits the heads by ridge regression on a frozen trunk, one attribute at a time; here the same
    squared error is minimised by the optimiser, so the trunk may be trained too, and ``optimizer.weight_decay`` takes
    the place of the ridge.

    Args:
        rating: what the heads say.
        attributes: what the data says; nan where a rating is missing.

    Returns:
        One loss a response, 0 for a response without a rating; its reward is the mean of its ratings.
    """
    rated = ~torch.isnan(attributes)
    error = (rating - attributes.to(rating.dtype).nan_to_num()).square() * rated
    return GroupLoss(error.sum(-1) / rated.sum(-1).clamp(min=1), rating.detach().mean(-1))


def _by_label(reward: Float[Tensor, " n"], label: Float[Tensor, " n"]) -> dict[str, Tensor]:
    reward, good = reward.detach(), label >= 0.5
    return {
        "accuracy": outcomes(reward.where(good, -reward), 0.0),
        "reward/chosen": reward[good],
        "reward/rejected": reward[~good],
    }
