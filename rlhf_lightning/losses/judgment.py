r"""Learning from judgments: a criticism says in words what is wrong with a response.

CUT scores the same response in two contexts, behind prompt and criticism (A) and behind the prompt alone (B). A token
that the criticism makes much more likely is one that the criticism is about: it is *detected*, and in context B made
less likely. Notation: ``losses/terms.py``; :math:`p^A_t` and :math:`p^B_t` are a token's probabilities in the two
contexts, U the detected tokens. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.losses.options import NonNegative, Positive, loss_function
from rlhf_lightning.losses.terms import Reduction, log1mexp, log_odds_ratio, logistic, negative_log_likelihood
from rlhf_lightning.types import GroupLoss, JudgedPair, Pair, PreferenceLoss


@loss_function
def cut(policy: JudgedPair, *, threshold: Positive = 1.1, unlikelihood_weight: NonNegative = 1.0) -> GroupLoss:
    r"""CUT as released: unlikelihood on the tokens that the criticism points at, likelihood on all others.

    .. math:: \tfrac12\Big[-\frac1N\Big(\sum_{t\in J}\log p^A_t + \sum_{t\notin J}\log p^B_t\Big)
              - \frac1{N_J}\Big(\sum_{t\in J\setminus U}\log p^B_t + w\sum_{t\in U}\log(1 - p^B_t)\Big)\Big],
              \quad U = \{t\in J: p^A_t > \theta\,p^B_t\}

    with J the tokens of criticised responses. A row without a criticism is an ordinary demonstration: its prompt has
    nothing but itself before the response, and it is averaged with the criticised responses' likelihoods in context A.
    The ratios are constants for the gradient. N counts all tokens of the optimiser step, N_J those of criticised
    responses; a step without any criticism is plain fine-tuning, without the 1/2.

    Source: "Reasons to Reject? Aligning Language Models with Judgments", arXiv:2312.14591, in the form of the authors'
    code (wwxu21/CUT), which differs from the paper's; the latter is ``cut_paper``.
    Defaults: the authors' online setting, threshold 1.1 and weight 1; for the Shepherd data they use 1.2 and 0.5.
    Differences: the authors divide by the tokens of a micro-batch, and look for a criticism in it; here both are those
    of the step. They add 1e-5 where a probability is 1; here log-probs above -1e-6 count as -1e-6. TRL 1.16 has no
    such loss.

    Args:
        policy: log-probs of the policy in both contexts.
        threshold: the ratio above which a token is detected.
        unlikelihood_weight: the w above.

    Returns:
        One loss a row; log-probs in context B, summed, as rewards; the diagnostics of ``cut_paper``.

    Raises:
        ValueError: an option is outside its range.
    """
    detected_tokens = detected(policy, threshold)
    judged, every = policy.judged.step_length, policy.plain.step_length
    terms = _likelihood_or_not(policy, detected_tokens, unlikelihood_weight)
    behind_judgment = _per_step(-policy.judged.sum(), every)
    demonstrated = _per_step(_negative_sums(policy, ~policy.criticised, terms), every)
    alone = _per_step(_negative_sums(policy, policy.criticised, terms), judged)
    half = torch.where(judged > 0, 0.5, 1.0)
    return _result(policy, detected_tokens, half * (behind_judgment + demonstrated + alone), demonstrated + alone)


@loss_function
def cut_paper(
    policy: JudgedPair, *, threshold: Positive = 1.1, unlikelihood_weight: NonNegative = 0.5, gamma: NonNegative = 0.5
) -> GroupLoss:
    r"""CUT as in the paper: the unlikelihood of a detected token grows with its probability behind the criticism.

    .. math:: -\frac1n\Big[\sum_{t\notin U}\log p^B_t + \alpha\sum_{t\in U}(p^A_t)^\gamma\log(1 - p^B_t)\Big]
              - \frac1n\sum_t\log p^A_t

    A row without a criticism has the likelihood in context B alone. Ratios and weights are constants for the gradient;
    n is the response's own length.

    Source: "Reasons to Reject? Aligning Language Models with Judgments", arXiv:2312.14591, section 4.
    Defaults: within the paper's grids: threshold in {1.1, 1.2}, weight (its alpha) in {0.25, 0.5, 1}, gamma in
    {0.25, 0.5, 1, 2}; the choice is ours.
    Differences: the paper compares the criticism with a made-up praise of the same response. Here the prompt alone is
    the other context, as in the authors' code (wwxu21/CUT). TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy in both contexts.
        threshold: the ratio above which a token is detected.
        unlikelihood_weight: the paper's alpha.
        gamma: exponent of the weight; 0 weighs all detected tokens equally.

    Returns:
        One loss a row; log-probs in context B, summed, as rewards; diagnostics ``detected`` (1 or 0 for every token of
        a criticised response, so its mean is \|U\|/N), ``ratio`` (of each detected token), ``loss/judged`` and
        ``loss/plain`` (the two brackets; the first of criticised rows only) and ``detected_prob`` (p^B of each
        detected token).

    Raises:
        ValueError: an option is outside its range.
    """
    detected_tokens = detected(policy, threshold)
    weight = unlikelihood_weight * (gamma * _aligned(policy)).exp()
    plain = policy.plain.with_token(_likelihood_or_not(policy, detected_tokens, weight))
    behind_judgment = negative_log_likelihood(policy.judged, "response_mean")
    alone = negative_log_likelihood(plain, "response_mean")
    return _result(policy, detected_tokens, behind_judgment + alone, alone)


@loss_function
def odds_ratio_judgment(
    policy: Pair, *, weight: NonNegative = 0.1, nll_reduction: Reduction = "response_mean"
) -> PreferenceLoss:
    r"""Odds ratio against a criticised response: fine-tuning on a good response, lower odds for the one it replaces.

    .. math:: \mathrm{NLL}(y_w) - \lambda\log\sigma(D), \quad
              D = \log\frac{p_w}{1 - p_w} - \log\frac{p_l}{1 - p_l},\ p = e^{\bar\ell}

    The rejected response is the criticised one, the chosen one its correction or any good response. The criticism
    serves to make the correction, or stands in the prompt; the formula does not see it.

    Source: ORPO's formula (arXiv:2403.07691) on the data of "Reasons to Reject? Aligning Language Models with
    Judgments", arXiv:2312.14591. It is *not* the method of that paper, which is ``cut``.
    Defaults: weight 0.1, that of ``orpo``; each response weighs equally.
    Differences: the same numbers as ``orpo`` on the same pairs, which also explains why log-probs are averaged over a
    response. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy, averaged here over each response.
        weight: of the odds-ratio term.
        nll_reduction: how the likelihood term adds up tokens.

    Returns:
        One loss a pair; log-probs per token as rewards; diagnostics ``nll`` and ``log_odds`` (the D above).

    Raises:
        ValueError: an option is outside its range.
    """
    log_odds = log_odds_ratio(policy)
    nll = negative_log_likelihood(policy.chosen, nll_reduction)
    return PreferenceLoss(
        nll + weight * logistic(log_odds),
        policy.chosen.mean().detach(),
        policy.rejected.mean().detach(),
        diagnostics={"nll": nll.detach(), "log_odds": log_odds.detach()},
    )


def detected(policy: JudgedPair, threshold: float) -> Bool[Tensor, " plain_tokens"]:
    """Tokens that the criticism makes more than ``threshold`` times as likely; none in a row without criticism."""
    return policy.criticised & (_ratio(policy) > threshold)


def _ratio(policy: JudgedPair) -> Float[Tensor, " plain_tokens"]:
    """Probability of each token behind the criticism over that behind the prompt alone; 1 in a row without one."""
    return torch.where(policy.criticised, (_aligned(policy) - policy.plain.token.detach()).exp(), 1.0)


def _aligned(policy: JudgedPair) -> Float[Tensor, " plain_tokens"]:
    """Log-prob of each token of context B in context A, detached; 0 in a row without criticism."""
    aligned = torch.zeros_like(policy.plain.token)
    aligned[policy.criticised] = policy.judged.token.detach()
    return aligned


def _likelihood_or_not(
    policy: JudgedPair, detected_tokens: Bool[Tensor, " plain_tokens"], weight: float | Float[Tensor, " plain_tokens"]
) -> Float[Tensor, " plain_tokens"]:
    """Objective to maximise at each token: log p, and at detected ones the weighted log(1 - p)."""
    return torch.where(detected_tokens, weight * log1mexp(policy.plain.token), policy.plain.token)


def _negative_sums(
    policy: JudgedPair, chosen: Bool[Tensor, " plain_tokens"], terms: Float[Tensor, " plain_tokens"]
) -> Float[Tensor, " groups"]:
    """Sums over the chosen tokens of each response in context B, negative."""
    return -policy.plain.with_token(torch.where(chosen, terms, 0.0)).sum()


def _per_step(sums: Float[Tensor, " groups"], mean_length: Float[Tensor, ""]) -> Float[Tensor, " groups"]:
    """Sums of a slot that a whole step may leave empty."""
    return sums / torch.where(mean_length > 0, mean_length, 1.0)


def _result(
    policy: JudgedPair,
    detected_tokens: Bool[Tensor, " plain_tokens"],
    loss: Float[Tensor, " groups"],
    plain: Float[Tensor, " groups"],
) -> GroupLoss:
    judged = policy.judged.length > 0
    diagnostics = {
        "detected": detected_tokens[policy.criticised].float(),
        "ratio": _ratio(policy)[detected_tokens],
        "detected_prob": policy.plain.token[detected_tokens].exp(),
        "loss/judged": -policy.judged.mean()[judged],
        "loss/plain": plain,
    }
    return GroupLoss(
        loss,
        policy.plain.sum().detach(),
        diagnostics={name: value.detach() for name, value in diagnostics.items()},
    )
