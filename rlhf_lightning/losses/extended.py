"""DPO with one thing added: a likelihood term, a penalty, an offset or a weight.

Notation: ``losses/terms.py``. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import FlipRate, NonNegative, Positive, loss_function
from rlhf_lightning.losses.terms import Reduction, log_ratios, logistic, negative_log_likelihood
from rlhf_lightning.types import Pair, PreferenceLoss, Ragged


@loss_function
def rpo(
    policy: Pair,
    reference: Pair,
    *,
    beta: Positive = 0.1,
    nll_weight: NonNegative = 0.005,
    nll_reduction: Reduction = "token_mean",
) -> PreferenceLoss:
    r"""Regularised preference optimisation: DPO plus the negative log-likelihood of the chosen response.

    .. math:: -\log\sigma(\beta h) + \eta\,\mathrm{NLL}(y_w)

    Source: "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
    arXiv:2405.16436; the same sum is the loss of "Iterative Reasoning Preference Optimization", arXiv:2404.19733.
    Defaults: nll_weight 0.005 (RPO). Iterative RPO uses 1.0.
    Differences: TRL 1.16 writes it as ``loss_type=["sigmoid", "sft"]`` with ``loss_weights`` and a token mean over the
    micro-batch; here ``token_mean`` is the mean over the whole optimiser step. ``response_mean`` gives each response
    the same weight, ``sum`` is the likelihood of the whole response.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        nll_weight: weight of the likelihood term; 0 is DPO.
        nll_reduction: how the likelihood term adds up tokens.

    Returns:
        One loss a pair; implicit rewards beta * rho; the likelihood term as diagnostic ``nll``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    nll = negative_log_likelihood(policy.chosen, nll_reduction)
    loss = logistic(chosen - rejected) + nll_weight * nll
    return PreferenceLoss(loss, chosen.detach(), rejected.detach(), diagnostics={"nll": nll.detach()})


@loss_function
def dpop(policy: Pair, reference: Pair, *, beta: Positive = 0.1, penalty: NonNegative = 50.0) -> PreferenceLoss:
    r"""DPO-positive: DPO that pays when the chosen response becomes less likely than under the reference.

    .. math:: -\log\sigma\big(\beta[h - \lambda\max(0, -\rho_w)]\big)

    For pairs that differ in a few tokens only, where DPO lowers both. The penalty stands inside the bracket that beta
    multiplies.

    Source: "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive", arXiv:2402.13228.
    Defaults: penalty 50, PaddleNLP's default; beta 0.1, DPO's.
    Differences: the authors published no training code, and TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        penalty: the paper's lambda; 0 is DPO.

    Returns:
        One loss a pair; implicit rewards beta * rho; the share of penalised pairs as diagnostic ``penalised``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = log_ratios(policy, reference)
    margin = chosen - rejected - penalty * F.relu(-chosen)
    return PreferenceLoss(
        logistic(beta * margin),
        (beta * chosen).detach(),
        (beta * rejected).detach(),
        diagnostics={"penalised": (chosen < 0).float()},
    )


@loss_function
def odpo(
    policy: Pair,
    reference: Pair,
    margin: Float[Tensor, " pairs"],
    *,
    beta: Positive = 0.5,
    alpha: NonNegative = 1.0,
) -> PreferenceLoss:
    r"""DPO with an offset: a pair with a large score gap has to be told apart by more.

    .. math:: -\log\sigma(\beta h - \Delta), \quad \Delta = \alpha\log\big(s(y_w) - s(y_l)\big)

    It is the logarithm of the *difference* of scores: a gap below 1 gives a negative offset, which asks for less than
    DPO, and a gap of 0 would ask for nothing at all (minus infinity), so every gap must be positive.

    Source: "Direct Preference Optimization with an Offset", arXiv:2402.10571, and its code (rycolab/odpo).
    Defaults: beta 0.5 and alpha 1, the authors' setting for TL;DR with human ratings of 1 to 7. For classifier scores
    they use beta 0.7 and alpha 0.5 (sentiment) and beta 0.05 and alpha 1 (toxicity).
    Differences: the authors' code can also take the log of the score *ratio*; it is not offered, because data carries
    the gap only. Their TL;DR data skips ties; here a tie is an error, so that nothing is dropped silently. TRL 1.16 has
    no such loss.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        margin: score(chosen) - score(rejected), in the units of the scores.
        beta: strength of the pull towards the reference, 1/nats.
        alpha: weight of the offset; 0 is DPO.

    Returns:
        One loss a pair; implicit rewards beta * rho; the offset as diagnostic ``offset``.

    Raises:
        ValueError: an option is outside its range, or a score gap is not positive.
    """
    positive = margin > 0
    if not bool(positive.all()):
        pairs = (~positive).nonzero().flatten().tolist()
        raise ValueError(
            f"odpo needs every chosen response to score higher than its rejected one, but pairs {pairs} of the batch "
            f"have a margin of {margin[pairs].tolist()}. Drop ties and put the better-scored response under chosen"
        )
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    offset = alpha * margin.log()
    return PreferenceLoss(
        logistic(chosen - rejected - offset), chosen.detach(), rejected.detach(), diagnostics={"offset": offset}
    )


@loss_function
def wpo(
    policy: Pair,
    reference: Pair,
    collision: Pair,
    *,
    beta: Positive = 0.01,
    label_smoothing: FlipRate = 0.0,
    clamp: bool = True,
) -> PreferenceLoss:
    r"""Weighted preference optimisation: DPO in which pairs that the policy would hardly write count less.

    .. math:: w\,\big(-\log\sigma(\beta h)\big), \quad w = \min\big(1, e^{a_w + a_l}\big),\
              a = \frac1n\sum_t\Big[\log\pi_\theta(y_t) - \log\sum_v\pi_\theta(v)^2\Big]

    Each token is compared with what the policy's own samples would get on average, so the weight of on-policy text is
    near one. It is a constant for the gradient.

    Source: "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv:2406.11827.
    Defaults: beta 0.01, as in TRL's index of papers.
    Differences: the authors' code clamps the weight at 1; TRL 1.16 (``use_weighting``) does not: ``clamp=False``.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        collision: log of the policy's collision probability at each scored token.
        beta: strength of the pull towards the reference, 1/nats.
        label_smoothing: probability that a label is flipped, as in ``cdpo``.
        clamp: whether the weight of a pair is at most 1.

    Returns:
        One loss a pair; implicit rewards beta * rho; the weight as diagnostic ``weight``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    aligned = _alignment(policy.chosen, collision.chosen) + _alignment(policy.rejected, collision.rejected)
    weight = (aligned.clamp(max=0.0) if clamp else aligned).exp()
    loss = weight * logistic(chosen - rejected, label_smoothing)
    return PreferenceLoss(loss, chosen.detach(), rejected.detach(), diagnostics={"weight": weight})


def _alignment(log_probs: Ragged, collision: Ragged) -> Float[Tensor, " responses"]:
    """Mean log-prob of a response's tokens, relative to the mean probability of the policy's own tokens; detached."""
    return log_probs.with_token(log_probs.token.detach() - collision.token.detach()).mean()
