"""Losses of the log-ratio difference between chosen and rejected: the direct preference optimisation family.

They see only ``h = rho_w - rho_l`` (notation: ``losses/terms.py``), so a constant added to both log-ratios of a pair
changes nothing. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import FlipRate, Positive, PositiveFlipRate, PositiveShare, Share, loss_function
from rlhf_lightning.losses.terms import log_ratios, logistic, mean_log_ratios, power_score
from rlhf_lightning.types import Pair, PreferenceLoss

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@loss_function
def dpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> PreferenceLoss:
    r"""Direct preference optimisation: logistic loss on the difference of implicit rewards.

    .. math:: -\log\sigma(\beta h)

    Source: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", arXiv:2305.18290, eq. 7.
    Defaults: beta 0.1, the lower end of what the authors' repository suggests (0.1 to 0.5) and TRL's default.
    Differences: none between the paper, the authors' code and TRL 1.16 (``sigmoid``).

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference, in the same layout.
        beta: strength of the pull towards the reference, 1/nats.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    return PreferenceLoss(logistic(chosen - rejected), chosen.detach(), rejected.detach())


@loss_function
def cdpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> PreferenceLoss:
    r"""Conservative DPO: cross-entropy against labels that are wrong with a known probability.

    .. math:: -(1-\epsilon)\log\sigma(\beta h) - \epsilon\log\sigma(-\beta h)

    The optimum is finite: :math:`\beta h = \log((1-\epsilon)/\epsilon)`.

    Source: E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023 (a note, not a paper).
    Defaults: label_smoothing 0.1, the value the authors' repository suggests to try.
    Differences: TRL 1.16 ignores ``label_smoothing`` with ``loss_type="sigmoid"``, so there this is plain DPO.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        label_smoothing: probability that chosen and rejected are swapped; 0 is DPO.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    return PreferenceLoss(logistic(chosen - rejected, label_smoothing), chosen.detach(), rejected.detach())


@loss_function
def robust_dpo(
    policy: Pair, reference: Pair, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1
) -> PreferenceLoss:
    r"""Robust DPO: an unbiased estimate of the DPO loss on clean labels, from labels flipped at a known rate.

    .. math:: \frac{-(1-\epsilon)\log\sigma(\beta h) + \epsilon\log\sigma(-\beta h)}{1-2\epsilon}

    The second term is subtracted, where cDPO adds it, so the loss can be negative.

    Source: "Provably Robust DPO: Aligning Language Models with Noisy Feedback", arXiv:2403.00409.
    Defaults: label_smoothing 0.1, the paper's (section 6); beta 0.1, DPO's. TRL's index of papers gives beta 0.01.
    Differences: none to TRL 1.16 (``robust``).

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        label_smoothing: probability that chosen and rejected are swapped; at 0.5 a label carries nothing.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    margin = chosen - rejected
    clean, flipped = logistic(margin), logistic(-margin)
    loss = ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


@loss_function
def ipo(
    policy: Pair, reference: Pair, *, beta: Positive = 0.1, aggregate: Literal["mean", "sum"] = "mean"
) -> PreferenceLoss:
    r"""Identity preference optimisation: squared distance of the log-ratio gap from a finite target.

    .. math:: \Big(\bar\rho_w - \bar\rho_l - \frac{1}{2\beta}\Big)^2

    Source: "A General Theoretical Paradigm to Understand Learning from Human Preferences", arXiv:2310.12036, eq. 17;
    beta is the paper's tau.
    Defaults: beta 0.1, TRL's.
    Differences: the paper writes log-ratios of whole responses. Since January 2024 TRL *averages* them over tokens
    (``ipo`` of TRL 1.16), after asking the authors: with sums the target 1/(2 beta) is a number of nats for the whole
    response, whatever its length, so beta means something else for every length. ``aggregate="mean"`` is that corrected
    form (TRL, HALOs, LLaMA-Factory); ``aggregate="sum"`` is the literal one (the DPO authors' repository, OpenRLHF).
    Published comparisons made before the correction used sums.

    Args:
        policy: log-probs of the policy.
        reference: log-probs of the reference.
        beta: half the inverse of the target gap: tokens/nats for ``mean``, 1/nats for ``sum``.
        aggregate: whether log-ratios are averaged or summed over a response's tokens.

    Returns:
        One loss a pair; rewards beta * the log-ratio that is compared.

    Raises:
        ValueError: an option is outside its range.
    """
    ratios = mean_log_ratios if aggregate == "mean" else log_ratios
    chosen, rejected = ratios(policy, reference)
    loss = (chosen - rejected - 1 / (2 * beta)).square()
    return PreferenceLoss(loss, (beta * chosen).detach(), (beta * rejected).detach())


@loss_function
def hinge(policy: Pair, reference: Pair, *, beta: Positive = 0.05) -> PreferenceLoss:
    r"""Normalised hinge loss: pairs that are 1/beta nats apart are left alone.

    .. math:: \max(0, 1 - \beta h)

    Source: "Statistical Rejection Sampling Improves Preference Optimization", arXiv:2309.06657 (hinge-norm).
    Defaults: beta 0.05, the best of the paper's gamma ablation.
    Differences: none to TRL 1.16 (``hinge``), whose default beta is 0.1. The reference-free hinge of SLiC is ``slic``.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: the paper's gamma, 1/nats.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    return PreferenceLoss(F.relu(1 - (chosen - rejected)), chosen.detach(), rejected.detach())


@loss_function
def exo(
    policy: Pair, reference: Pair, *, beta: Positive = 0.5, label_smoothing: PositiveFlipRate = 1e-3
) -> PreferenceLoss:
    r"""Efficient exact optimisation for pairs: *reverse* KL from the policy's preference to the smoothed label.

    .. math:: \sigma(z)\,[\log\sigma(z) - \log(1-\epsilon)] + \sigma(-z)\,[\log\sigma(-z) - \log\epsilon],
              \quad z = \beta h

    Source: "Towards Efficient Exact Optimization of Language Model Alignment", arXiv:2402.00856, eq. 16.
    Defaults: label_smoothing 1e-3, the paper's value for preference data; beta 0.5, that of the authors' scripts
    (haozheji/exact-optimization) but the one for IMDb, which has the 0.1 of the paper's section B.
    Differences: the authors' code has the general form for K responses and encodes a preference as target logits 0 and
    -10, which is ``label_smoothing = 4.54e-5``. All of their scripts divide the logits of policy and reference by 0.8,
    the temperature that they sample with; here log-probs are those of temperature 1, which any reference store holds.
    TRL 1.16 (``exo_pair``) is this function.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        label_smoothing: probability given to the rejected response; its logarithm is taken, so it cannot be 0.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    margin = chosen - rejected
    win = margin.sigmoid() * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    lose = (-margin).sigmoid() * (F.logsigmoid(-margin) - math.log(label_smoothing))
    return PreferenceLoss(win + lose, chosen.detach(), rejected.detach())


@loss_function
def discopop(policy: Pair, reference: Pair, *, beta: Positive = 0.05, tau: PositiveShare = 0.05) -> PreferenceLoss:
    r"""DiscoPOP: a blend of logistic and exponential loss that a language model discovered by writing code.

    .. math:: (1-m)\,(-\log\sigma(z)) + m\,e^{-z}, \quad m = \sigma(z/\tau),\ z = \beta h

    It is not convex: with tau = 0.05 the loss *rises* with z at z = 0 (slope 0.78), where training starts.

    Source: "Discovering Preference Optimization Algorithms with and for Large Language Models", arXiv:2406.08414, eq.
    5.
    Defaults: beta 0.05 (section B.1) and tau 0.05, the paper's.
    Differences: TRL 1.16 (``discopop``) multiplies :math:`m` with :math:`e^{-z}`, which is 0 * inf = NaN for very
    negative z. Here the product is one exponential, :math:`e^{\log\sigma(z/\tau) - z}`, which never overflows for
    tau <= 1; everything else is equal.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        tau: how sharply the blend changes at z = 0.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    margin = chosen - rejected
    exponential = (F.logsigmoid(margin / tau) - margin).exp()
    loss = (-margin / tau).sigmoid() * logistic(margin) + exponential
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


@loss_function
def sigmoid_norm(policy: Pair, reference: Pair, *, beta: Positive = 5.0) -> PreferenceLoss:
    r"""Length-normalised DPO: the logistic loss on log-ratios per token.

    .. math:: -\log\sigma\big(\beta(\bar\rho_w - \bar\rho_l)\big)

    Source: "Tulu 3: Pushing Frontiers in Open Language Model Post-Training", arXiv:2411.15124.
    Defaults: beta 5, from the Tulu 3 reproduction commands of open-instruct (``--dpo_loss_type dpo_norm --dpo_beta
    5``). Log-ratios are divided by lengths, so beta is larger than DPO's by about that factor.
    Differences: none to TRL 1.16 (``sigmoid_norm``), whose default beta is 0.1.

    Args:
        policy: log-probs of the policy, averaged here over each response.
        reference: log-probs of the reference.
        beta: tokens/nats.

    Returns:
        One loss a pair; rewards beta * rho / n.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in mean_log_ratios(policy, reference))
    return PreferenceLoss(logistic(chosen - rejected), chosen.detach(), rejected.detach())


@loss_function
def f_dpo(
    policy: Pair,
    reference: Pair,
    *,
    beta: Positive = 0.1,
    divergence: Divergence = "forward_kl",
    alpha: Share = 0.5,
    alpha_convention: Literal["f_dpo", "trl"] = "f_dpo",
) -> PreferenceLoss:
    r"""f-DPO: DPO whose constraint to the reference is another divergence than the reverse KL.

    .. math:: -\log\sigma\big(\beta[f'(u_w) - f'(u_l)]\big), \quad u = e^\rho

    ``reverse_kl``: :math:`f' = \rho` (DPO); ``forward_kl``: :math:`1 - e^{-\rho}`; ``js``:
    :math:`\log 2 + \log\sigma(\rho)`; ``alpha``: :math:`(1 - e^{-\alpha\rho})/\alpha`, which is ``reverse_kl`` at 0 and
    ``forward_kl`` at 1. The constants cancel in the loss; they make every reward 0 where policy and reference agree.

    Source: "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
    arXiv:2309.16240.
    Defaults: beta 0.1; alpha 0.5, at which both conventions agree.
    Differences: TRL 1.16 writes the alpha divergence as :math:`(u^{a-1} - 1)/(a - 1)`, so its :math:`a` is one minus
    the paper's alpha; ``alpha_convention="trl"`` reads ``alpha`` that way. Exponents are clamped at 80; TRL clamps them
    for ``alpha`` only. TRL also accepts the other divergences with hinge, IPO, EXO and robust losses; here they come
    with the logistic loss, the one of the paper.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: strength of the pull towards the reference, 1/nats.
        divergence: the divergence between policy and reference.
        alpha: order of the ``alpha`` divergence; unused by the others.
        alpha_convention: whose alpha it is.

    Returns:
        One loss a pair; rewards beta * f'(u).

    Raises:
        ValueError: an option is outside its range.
    """
    order = alpha if alpha_convention == "f_dpo" else 1 - alpha
    chosen, rejected = (beta * _f_score(ratio, divergence, order) for ratio in log_ratios(policy, reference))
    return PreferenceLoss(logistic(chosen - rejected), chosen.detach(), rejected.detach())


def _f_score(log_ratio: Float[Tensor, " pairs"], divergence: Divergence, order: float) -> Float[Tensor, " pairs"]:
    """f'(u) - f'(1) for u = exp(log_ratio); forward KL is the alpha divergence of order 1."""
    if divergence == "js":
        return F.logsigmoid(log_ratio) + math.log(2)
    return power_score(log_ratio, {"reverse_kl": 0.0, "forward_kl": 1.0, "alpha": order}[divergence])
