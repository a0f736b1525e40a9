"""Preference losses without a reference model: none is loaded, and rewards are (scaled) log-probs of the policy.

Notation: ``losses/terms.py``. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import torch.nn.functional as F

from rlhf_lightning.losses.options import FlipRate, NonNegative, Positive, Real, loss_function
from rlhf_lightning.losses.terms import (
    Reduction,
    log_odds_ratio,
    logistic,
    negative_log_likelihood,
    power_score,
    summed_margin,
)
from rlhf_lightning.types import Pair, PreferenceLoss


@loss_function
def preferred_ft(policy: Pair, *, reduction: Reduction = "token_mean") -> PreferenceLoss:
    r"""Supervised fine-tuning on the chosen responses of pairs: the baseline of preference optimisation.

    .. math:: \mathrm{NLL}(y_w)

    Source: Preferred-FT in "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    arXiv:2305.18290, section 6. As a term of a weighted sum it is the likelihood term of other methods.
    Defaults: the token mean of ordinary fine-tuning.
    Differences: TRL 1.16 (``loss_type="sft"``) takes the token mean over the micro-batch; here ``token_mean`` is the
    mean over the whole optimiser step.

    Args:
        policy: log-probs of the policy.
        reduction: how tokens are added up.

    Returns:
        One loss a pair; summed log-probs as rewards.

    Raises:
        ValueError: an option is not one of the allowed ones.
    """
    loss = negative_log_likelihood(policy.chosen, reduction)
    return PreferenceLoss(loss, policy.chosen.sum().detach(), policy.rejected.sum().detach())


@loss_function
def slic(policy: Pair, *, delta: NonNegative = 1.0, nll_weight: NonNegative = 0.1) -> PreferenceLoss:
    r"""Sequence likelihood calibration: a hinge on log-probs, and a likelihood term that keeps the model a good one.

    .. math:: \max(0, \delta - \ell_w + \ell_l) - \lambda\,\ell_w

    Source: "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", arXiv:2305.10425.
    Defaults: delta 1 and nll_weight 0.1, from HALOs' configuration; the authors published no code.
    Differences: the paper regularises towards the supervised target or the best-ranked sample; pairs have one candidate
    for that, the chosen response. The hinge relative to a reference is ``hinge``; its delta is 1/beta.

    Args:
        policy: log-probs of the policy, summed here over each response.
        delta: margin in nats.
        nll_weight: the paper's lambda, weight of the summed log-likelihood.

    Returns:
        One loss a pair, in nats; summed log-probs as rewards; whether the hinge is active as diagnostic ``active``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected, margin = policy.chosen.sum(), policy.rejected.sum(), summed_margin(policy)
    return PreferenceLoss(
        F.relu(delta - margin) - nll_weight * chosen,
        chosen.detach(),
        rejected.detach(),
        diagnostics={"active": (margin.detach() < delta).float()},
    )


@loss_function
def simpo(
    policy: Pair,
    *,
    beta: Positive = 2.0,
    gamma: NonNegative = 1.0,
    label_smoothing: FlipRate = 0.0,
    nll_weight: NonNegative = 0.0,
) -> PreferenceLoss:
    r"""Simple preference optimisation: log-probs per token as rewards, with a target margin.

    .. math:: -\log\sigma\big(\beta(\bar\ell_w - \bar\ell_l) - \gamma\big)

    Source: "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv:2405.14734.
    Defaults: beta 2 and gamma 1, the start of the authors' advice (beta 2 to 10, gamma / beta around 0.5).
    Differences: the authors' code takes ``gamma_beta_ratio``, gamma / beta. TRL 1.16 (CPO trainer with
    ``loss_type="simpo"``) takes gamma as here, but adds the likelihood of the chosen response with weight 1 unless
    ``cpo_alpha=0``: that is ``nll_weight=1.0`` here.

    Args:
        policy: log-probs of the policy, averaged here over each response.
        beta: scale of the log-probs per token, tokens/nats.
        gamma: target margin, in logits.
        label_smoothing: probability that a label is flipped, as in ``cdpo``.
        nll_weight: weight of the token-mean negative log-likelihood of the chosen response.

    Returns:
        One loss a pair; rewards beta * l / n.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = beta * policy.chosen.mean(), beta * policy.rejected.mean()
    loss = logistic(chosen - rejected - gamma, label_smoothing)
    if nll_weight:
        loss = loss + nll_weight * negative_log_likelihood(policy.chosen)
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


@loss_function
def simper(policy: Pair) -> PreferenceLoss:
    r"""SimPER: raise the inverse perplexity of the chosen response, lower that of the rejected one; no options.

    .. math:: -e^{\bar\ell_w} + e^{\bar\ell_l}

    Source: "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters", arXiv:2502.00883.
    Defaults: there is nothing to choose.
    Differences: none to the authors' code (tengxiao1/SimPER). TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy, averaged here over each response.

    Returns:
        One loss a pair, between -1 and 1; inverse perplexities as rewards.
    """
    chosen, rejected = policy.chosen.mean().exp(), policy.rejected.mean().exp()
    return PreferenceLoss(rejected - chosen, chosen.detach(), rejected.detach())


@loss_function
def alpha_po(policy: Pair, *, beta: Positive = 2.5, gamma: NonNegative = 0.1, alpha: Real = 0.25) -> PreferenceLoss:
    r"""AlphaPO: SimPO whose reward is a power of the response's probability instead of its logarithm.

    .. math:: -\log\sigma\big(\beta(r_w - r_l) - \gamma\big), \quad
              r = \frac{1 - p^{-\alpha}}{\alpha},\ p = e^{\bar\ell}

    Source: "AlphaPO: Reward Shape Matters for LLM Alignment", arXiv:2501.03884.
    Defaults: alpha 0.25, beta 2.5 and gamma 0.1, the paper's Mistral-Instruct setting (table 3).
    Differences: TRL 1.16 (CPO trainer with ``alpha``) computes p first, which underflows to 0 and then gives an
    infinite reward; here it is one ``expm1`` of the log-prob, clamped at an exponent of 80. TRL adds a likelihood term
    unless ``cpo_alpha=0``.

    Args:
        policy: log-probs of the policy, averaged here over each response.
        beta: scale of the rewards.
        gamma: target margin, in logits.
        alpha: shape of the reward; 0 is SimPO, positive values punish unlikely responses harder.

    Returns:
        One loss a pair; rewards beta * r.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen = beta * power_score(policy.chosen.mean(), alpha)
    rejected = beta * power_score(policy.rejected.mean(), alpha)
    return PreferenceLoss(logistic(chosen - rejected - gamma), chosen.detach(), rejected.detach())


@loss_function
def cpo(
    policy: Pair,
    *,
    beta: Positive = 0.1,
    label_smoothing: FlipRate = 0.0,
    nll_weight: NonNegative = 1.0,
    nll_reduction: Reduction = "token_mean",
) -> PreferenceLoss:
    r"""Contrastive preference optimisation: DPO with a uniform reference, plus the likelihood of the chosen response.

    .. math:: -\log\sigma\big(\beta(\ell_w - \ell_l)\big) + \lambda\,\mathrm{NLL}(y_w)

    Source: "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
    arXiv:2401.08417.
    Defaults: beta 0.1 and nll_weight 1, the authors' (ALMA).
    Differences: TRL 1.16 (CPO trainer, ``loss_type="sigmoid"``) takes the likelihood as a token mean over the
    micro-batch; here ``token_mean`` is the mean over the whole optimiser step.

    Args:
        policy: log-probs of the policy, summed here over each response.
        beta: 1/nats.
        label_smoothing: probability that a label is flipped, as in ``cdpo``.
        nll_weight: weight of the likelihood term.
        nll_reduction: how the likelihood term adds up tokens.

    Returns:
        One loss a pair; rewards beta * l; the likelihood term as diagnostic ``nll``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = beta * policy.chosen.sum(), beta * policy.rejected.sum()
    nll = negative_log_likelihood(policy.chosen, nll_reduction)
    loss = logistic(beta * summed_margin(policy), label_smoothing) + nll_weight * nll
    return PreferenceLoss(loss, chosen.detach(), rejected.detach(), diagnostics={"nll": nll.detach()})


@loss_function
def orpo(policy: Pair, *, beta: NonNegative = 0.1, nll_reduction: Reduction = "token_mean") -> PreferenceLoss:
    r"""Odds-ratio preference optimisation: fine-tuning on the chosen response and a penalty on the odds of the other.

    .. math:: \mathrm{NLL}(y_w) - \lambda\log\sigma(D), \quad
              D = \log\frac{p_w}{1 - p_w} - \log\frac{p_l}{1 - p_l},\ p = e^{\bar\ell}

    It needs no fine-tuned start: begin with a base model.

    Source: "ORPO: Monolithic Preference Optimization without Reference Model", arXiv:2403.07691.
    Defaults: beta (the paper's lambda) 0.1, the authors' Mistral-ORPO-beta and TRL's default.
    Differences: the authors' code and TRL 1.16 take the likelihood over prompt *and* response (the authors have a
    switch, ``--disable_prompt_loss``). A packed batch scores response tokens only, here and for every other method, so
    ``nll_on_prompt`` is not offered: the term covers the response, as in LLaMA-Factory, whose per-response average is
    ``nll_reduction="response_mean"``. The odds are computed with a stable log(1 - exp(x)) (TRL too), where the authors
    use float64, and log-probs per token above -1e-6 count as -1e-6, because certainty would have infinite odds.

    Args:
        policy: log-probs of the policy, averaged here over each response.
        beta: weight of the odds-ratio term.
        nll_reduction: how the likelihood term adds up tokens.

    Returns:
        One loss a pair; rewards beta * l / n; diagnostics ``nll`` and ``log_odds`` (the D above).

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = policy.chosen.mean(), policy.rejected.mean()
    log_odds = log_odds_ratio(policy)
    nll = negative_log_likelihood(policy.chosen, nll_reduction)
    return PreferenceLoss(
        nll + beta * logistic(log_odds),
        (beta * chosen).detach(),
        (beta * rejected).detach(),
        diagnostics={"nll": nll.detach(), "log_odds": log_odds.detach()},
    )
