"""Supervised fine-tuning on responses that a score selects or weighs: no gradient of the score is needed.

They take what the losses of ranked lists take (``losses/ranking.py``) and return one number a list. Notation:
``losses/terms.py``. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.losses.lists import ListReduction, list_nll, log_shares, shares, worse
from rlhf_lightning.losses.options import Positive, Share, loss_function
from rlhf_lightning.types import GroupLoss, Moments, Ragged


@loss_function
def best_of_n(
    policy: Ragged,
    score: Float[Tensor, "groups slots"],
    present: Bool[Tensor, "groups slots"],
    *,
    top_fraction: Share = 0.0,
    reduction: ListReduction = "response_mean",
) -> GroupLoss:
    r"""Best-of-n and RAFT's training half: fine-tuning on the best responses of each list.

    .. math:: \frac{1}{|B|}\sum_{k \in B}\mathrm{NLL}(y_k), \quad
              B = \text{the best } \max(1, \lfloor f n\rfloor) \text{ of the } n \text{ responses}

    Source: "RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment", arXiv:2304.06767.
    Defaults: the single best response (``top_fraction`` 0), which with n = 1/fraction samples a prompt is RAFT's own
    per-prompt mode; the mean over a response's tokens.
    Differences: RAFT draws new samples between rounds; this loss is one round, on given lists. Its code (LMFlow) also
    scores the prompt's tokens, here only the response is. LMFlow's other mode, which keeps the best of a whole
    batch of prompts and so favours easy prompts, is not offered. Responses tied with the last one kept are kept too.
    TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy.
        score: of each response; only the order counts.
        present: which slots hold a response.
        top_fraction: share of each list that is kept, at least its best response; 1 is fine-tuning on all.
        reduction: how tokens are added up.

    Returns:
        One loss a list; log-probs per token as rewards; diagnostics ``score/selected`` and ``score/mean`` of each list.

    Raises:
        ValueError: an option is outside its range.
    """
    better = worse(score, present).sum(1)
    count = (top_fraction * present.sum(-1, keepdim=True) + 1e-6).floor().clamp(min=1)
    share = shares(present & (better < count))
    return GroupLoss(
        list_nll(policy, share, reduction),
        policy.mean().detach(),
        diagnostics={"score/selected": _mean(score, share), "score/mean": _mean(score, shares(present))},
    )


@loss_function
def reward_weighted(
    policy: Ragged,
    score: Float[Tensor, "groups slots"],
    present: Bool[Tensor, "groups slots"],
    running: Moments,
    *,
    beta: Positive = 1.0,
    normalise: Literal["group", "running"] = "group",
    max_weight: Positive = 20.0,
    reduction: ListReduction = "response_mean",
) -> GroupLoss:
    r"""Reward-weighted fine-tuning: every response counts by the exponential of its score.

    .. math:: \sum_k w_k\,\mathrm{NLL}(y_k), \quad w = \mathrm{softmax}(r / \beta) \ \text{or}\
              w_k = \tfrac1n\min\big(w_{\max}, e^{(r_k - \mu)/\beta}\big)

    :math:`r` are the scores. With ``normalise="group"`` the weights of a list add up to 1, so only differences within
    it count and a list of one response is plain fine-tuning. ``"running"`` compares with :math:`\mu`, the mean score of
    the steps before (every response counts 1 in the first step), and also works for single scored responses.

    Source: "Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning", arXiv:1910.00177,
    which regresses on actions weighted so; the baseline here is a mean, not a value function.
    Defaults: beta 1 and weights of at most 20, as in the authors' code (xbpeng/awr); choose beta by the scale of the
    scores.
    Differences: that code standardises advantages over its whole buffer, which offline data has no need of. TRL 1.16
    has no such loss.

    Args:
        policy: log-probs of the policy.
        score: of each response, in the data's units.
        present: which slots hold a response.
        running: statistics of the scores.
        beta: temperature, units of the score; the smaller, the more only the best responses count.
        normalise: what a score is compared with.
        max_weight: largest weight of a response for ``running``.
        reduction: how tokens are added up.

    Returns:
        One loss a list; log-probs per token as rewards; the scores as ``observed``; diagnostics ``weight`` of each
        response and ``score/selected``, the weighted mean score of each list, beside ``score/mean``.

    Raises:
        ValueError: an option is outside its range.
    """
    if normalise == "group":
        weight = torch.where(present, log_shares(score / beta, present).exp(), 0.0)
    else:
        weight = _against(running, score, beta, max_weight).masked_fill(~present, 0.0)
        weight = weight / present.sum(-1, keepdim=True).clamp(min=1)
    selected = weight / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return GroupLoss(
        list_nll(policy, weight, reduction),
        policy.mean().detach(),
        observed=score[present],
        diagnostics={
            "weight": weight[present],
            "score/selected": _mean(score, selected),
            "score/mean": _mean(score, shares(present)),
        },
    )


def _against(
    running: Moments, score: Float[Tensor, "groups slots"], beta: float, largest: float
) -> Float[Tensor, "groups slots"]:
    """Exponentials of scores minus the mean of earlier steps, bounded above; 1 before the first step."""
    return torch.where(running.count > 0, ((score - running.mean) / beta).exp().clamp(max=largest), 1.0)


def _mean(score: Float[Tensor, "groups slots"], share: Float[Tensor, "groups slots"]) -> Float[Tensor, " groups"]:
    """Mean score of each list under shares that are 0 in empty slots, where the score is nan."""
    return torch.where(share > 0, score * share, 0.0).sum(-1)
