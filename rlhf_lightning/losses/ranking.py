r"""Losses of ranked lists: several responses to a prompt, each with a score.

They take log-probs of all responses, ``[groups, slots]`` scores (higher is better; a rank is a negative score) and
which slots are filled, and return one number a list. Lists may differ in length and have ties; a list of one response
has nothing to rank, and the loss of one without any is 0. Notation: ``losses/terms.py``; :math:`r_k` is the score of
response k, :math:`i \prec k` means :math:`r_i < r_k`. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.losses.lists import ListReduction, best, list_nll, log_shares, top_heavy, worse
from rlhf_lightning.losses.options import NonNegative, Positive, loss_function
from rlhf_lightning.types import GroupLoss, Ragged


@loss_function
def pro(
    policy: Ragged,
    score: Float[Tensor, "groups slots"],
    present: Bool[Tensor, "groups slots"],
    *,
    aggregate: Literal["mean", "sum"] = "mean",
    temperature: Literal["dynamic", "fixed"] = "dynamic",
    nll_weight: NonNegative = 0.05,
    nll_scale: Literal["squared_length", "none"] = "squared_length",
    nll_reduction: ListReduction = "sum",
) -> GroupLoss:
    r"""Preference ranking optimisation: each response against all worse ones, with more weight on larger score gaps.

    .. math:: \sum_k -\log\frac{e^{T_{kk}\bar\ell_k}}{e^{T_{kk}\bar\ell_k} + \sum_{i \prec k} e^{T_{ki}\bar\ell_i}}
              + w (n - 1)^2\,\mathrm{NLL}(y_1), \quad T_{ki} = r_k - r_i,\ T_{kk} = \max_{i \prec k} T_{ki}

    :math:`r_k` is the score of response k of n, and i is below k (:math:`i \prec k`) if its score is lower. Gaps of
    scores are temperatures, so their scale matters: normalise scores over the data.

    Source: "Preference Ranking Optimization for Human Alignment", arXiv:2306.17492, and its code
    (AlibabaResearch/DAMO-ConvAI/PRO).
    Defaults: nll_weight 0.05, the value in that code.
    Differences: the code and the paper do not agree. As in the code the scores are means over tokens while the
    likelihood term is a sum, and :math:`T_{kk}` is the largest gap; ``aggregate``, ``nll_reduction`` and ``nll_scale``
    have the alternatives. The code adds 1e-10 inside the logarithm; here it is one logsumexp. Lists need not be sorted;
    tied responses are not compared (the code lets one of a tie add :math:`e^0` to the other's denominator, depending on
    the order), and with a tie at the top the likelihood term is the mean over it. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy.
        score: of each response, in the data's units.
        present: which slots hold a response.
        aggregate: whether log-probs are averaged or summed over a response's tokens.
        temperature: gaps of scores, or 1 for every comparison (``fixed``).
        nll_weight: the code's w, weight of the likelihood of the best response.
        nll_scale: whether w is multiplied by (n - 1)^2, n the list's length.
        nll_reduction: how the likelihood term adds up tokens.

    Returns:
        One loss a list; the compared log-probs as rewards; diagnostics ``nll``, ``loss/ranking`` and the term of each
        rank, ``loss/rank_1`` that of the best responses.

    Raises:
        ValueError: an option is outside its range.
    """
    value = policy.mean() if aggregate == "mean" else policy.sum()
    table, below = value.view(score.shape), worse(score, present)
    gap = torch.where(below, score[:, :, None] - score[:, None, :], 0.0)
    if temperature == "fixed":
        gap = below.to(gap)
    terms = top_heavy(gap.amax(-1) * table, gap * table[:, None, :], below)
    nll = list_nll(policy, best(score, present), nll_reduction)
    weight = nll_weight * _squared_length(present) if nll_scale == "squared_length" else nll_weight
    diagnostics = {"nll": nll.detach(), **_by_rank(terms, below)}
    return GroupLoss(terms.sum(-1) + weight * nll, value.detach(), diagnostics=diagnostics)


@loss_function
def rrhf(
    policy: Ragged,
    score: Float[Tensor, "groups slots"],
    present: Bool[Tensor, "groups slots"],
    *,
    rank_weight: NonNegative = 1.0,
    length_penalty: NonNegative = 1.0,
    nll_weight: NonNegative = 1.0,
    nll_reduction: ListReduction = "response_mean",
) -> GroupLoss:
    r"""Rank responses to align with human feedback: a hinge on every pair in the wrong order, and SFT on the best.

    .. math:: w\sum_{r_i < r_k}\max(0, p_i - p_k) + \mathrm{NLL}(y_1), \quad p = \ell / n^\alpha

    :math:`r` are the scores of the responses, :math:`y_1` is the best one and :math:`n` a response's length.

    Source: "RRHF: Rank Responses to Align Language Models with Human Feedback without tears", arXiv:2304.05302, and its
    code (GanjinZero/RRHF).
    Defaults: rank_weight 1, as in the authors' scripts (their code's own default is 100), length_penalty 1.
    Differences: the authors average the likelihood term over the padded width, the paper sums it; here it is the mean
    over the response's tokens, or the sum. With a tie at the top it is the mean over it; the code takes the first.
    TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy.
        score: of each response; only the order counts.
        present: which slots hold a response.
        rank_weight: weight of the hinges.
        length_penalty: exponent of the length by which summed log-probs are divided; 0 compares sums.
        nll_weight: weight of the likelihood of the best response.
        nll_reduction: how the likelihood term adds up tokens.

    Returns:
        One loss a list; p as rewards; diagnostics ``nll`` and ``loss/ranking``.

    Raises:
        ValueError: an option is outside its range.
    """
    value = policy.sum() / policy.length.clamp(min=1) ** length_penalty
    table, below = value.view(score.shape), worse(score, present)
    hinge = torch.where(below, F.relu(table[:, None, :] - table[:, :, None]), 0.0).sum((1, 2))
    nll = list_nll(policy, best(score, present), nll_reduction)
    diagnostics = {"nll": nll.detach(), "loss/ranking": hinge.detach()}
    return GroupLoss(rank_weight * hinge + nll_weight * nll, value.detach(), diagnostics=diagnostics)


@loss_function
def plackett_luce(
    policy: Ragged,
    reference: Ragged,
    score: Float[Tensor, "groups slots"],
    present: Bool[Tensor, "groups slots"],
    *,
    beta: Positive = 0.1,
) -> GroupLoss:
    r"""DPO on rankings: the Plackett-Luce likelihood of the list's order under implicit rewards.

    .. math:: -\sum_k \log\frac{e^{\beta\rho_k}}{e^{\beta\rho_k} + \sum_{i \prec k} e^{\beta\rho_i}}

    i is below k (:math:`i \prec k`) if its score is lower. A list of two is one pair of ``dpo``.

    Source: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", arXiv:2305.18290, section
    A.3.
    Defaults: beta 0.1, DPO's.
    Differences: the paper has no ties; here tied responses are not compared with each other, only with all worse ones.
    TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference, in the same layout.
        score: of each response; only the order counts.
        present: which slots hold a response.
        beta: strength of the pull towards the reference, 1/nats.

    Returns:
        One loss a list; implicit rewards beta * rho; diagnostics as of ``pro``, less ``nll``.

    Raises:
        ValueError: an option is outside its range.
    """
    reward = beta * policy.log_ratio(reference).sum()
    table, below = reward.view(score.shape), worse(score, present)
    terms = top_heavy(table, table[:, None, :].expand(below.shape), below)
    return GroupLoss(terms.sum(-1), reward.detach(), diagnostics=_by_rank(terms, below))


@loss_function
def exo_k(
    policy: Ragged,
    reference: Ragged,
    score: Float[Tensor, "groups slots"],
    present: Bool[Tensor, "groups slots"],
    *,
    beta: Positive = 0.5,
    score_beta: Positive = 0.5,
) -> GroupLoss:
    r"""EXO on lists: reverse KL from the policy's distribution over the list to that of the scores.

    .. math:: \sum_k p_k(\log p_k - \log q_k), \quad p = \mathrm{softmax}(\beta\rho),\ q = \mathrm{softmax}(r / \beta_r)

    :math:`r` are the scores. For pairs with a label in place of scores there is ``exo``.

    Source: "Towards Efficient Exact Optimization of Language Model Alignment", arXiv:2402.00856, section 4, and its
    code (haozheji/exact-optimization).
    Defaults: beta and score_beta 0.5, as in that code's scripts but the one for IMDb, which has 0.1; choose score_beta
    by the scale of the scores.
    Differences: the authors' lists all have the same length, and their scripts divide the logits of policy and
    reference by 0.8, the temperature that they sample with; here log-probs are those of temperature 1. TRL 1.16 has no
    such loss; its ``exo_pair`` is the form for pairs.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        score: of each response, in the data's units.
        present: which slots hold a response.
        beta: the code's beta_pi, 1/nats.
        score_beta: the code's beta_r, units of the score.

    Returns:
        One loss a list, at least 0; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    reward = beta * policy.log_ratio(reference).sum()
    ours, target = log_shares(reward.view(score.shape), present), log_shares(score / score_beta, present)
    return GroupLoss((ours.exp() * (ours - target)).sum(-1), reward.detach())


def _squared_length(present: Bool[Tensor, "groups slots"]) -> Float[Tensor, " groups"]:
    return (present.sum(-1) - 1).clamp(min=0).float() ** 2


def _by_rank(
    terms: Float[Tensor, "groups slots"], below: Bool[Tensor, "groups slots slots"]
) -> dict[str, Float[Tensor, " n"]]:
    """The ranking part of each list, and its term by rank: 1 is best, tied responses share a rank."""
    rank, compared = below.sum(1), below.any(-1)
    constant = terms.detach()
    ranks = {f"loss/rank_{k + 1}": constant[compared & (rank == k)] for k in range(terms.shape[-1] - 1)}
    return {"loss/ranking": constant.sum(-1), **ranks}
