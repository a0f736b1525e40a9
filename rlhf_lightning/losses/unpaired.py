r"""Losses of responses that carry a label of their own: desirable or undesirable, no pair needed.

They take the log-probs of one response a group and its label, and return one number a response. Notation:
``losses/terms.py``, :math:`r = \beta\rho`, :math:`y_D` is a desirable and :math:`y_U` an undesirable response. A
micro-batch may hold responses of one label only. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.losses.options import NonNegative, Positive, loss_function
from rlhf_lightning.losses.terms import Reduction, log1mexp, negative_log_likelihood
from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.types import GroupLoss, Moments, Ragged


@loss_function
def kto(
    policy: Ragged,
    reference: Ragged,
    desirable: Float[Tensor, " responses"],
    kl: Float[Tensor, ""],
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> GroupLoss:
    r"""Kahneman-Tversky optimisation: gains and losses against a reference point, with a value that saturates.

    .. math:: \lambda_D\big[1 - \sigma(\beta(\rho_D - z_0))\big] \ \text{or}\
              \lambda_U\big[1 - \sigma(\beta(z_0 - \rho_U))\big], \quad
              z_0 = \max\big(0, \mathrm{mean}\,\rho(y'|x)\big)

    :math:`z_0` estimates KL(policy || reference) from mismatched rows, a prompt with the response to another one. It is
    a constant for the gradient and the same for every response of an optimiser step: the method averages over the whole
    step, all processes and micro-batches. Choose the weights so that
    :math:`\lambda_D n_D : \lambda_U n_U` lies between 1 and 4/3.

    Source: "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306, eq. 7.
    Defaults: beta 0.1 and weights 1, as in the authors' code (HALOs) and TRL.
    Differences: TRL 1.16 (``kto``) and HALOs mismatch rows within one micro-batch, so a micro-batch of 1 is refused
    there and the estimate is noisier the smaller it is; here mismatched rows come from the data loader and never share
    a prompt. TRL averages z_0 over the processes of one micro-batch, here over the step. On equal numbers all agree.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference, in the same layout.
        desirable: label of each response, 1 desirable, 0 undesirable.
        kl: the reference point z_0 in nats, not below 0.
        beta: strength of the pull towards the reference, 1/nats.
        desirable_weight: the paper's lambda_D.
        undesirable_weight: the paper's lambda_U.

    Returns:
        One loss a response, between 0 and its weight; implicit rewards beta * rho; diagnostics ``reward/accuracy``
        (is the log-ratio on its label's side of z_0? 1/2 at it), ``loss/desirable`` and ``loss/undesirable``.

    Raises:
        ValueError: an option is outside its range.
    """
    log_ratio, point = policy.log_ratio(reference).sum(), kl.detach()
    gain = _signed(beta * (log_ratio - point), desirable)
    weight = torch.where(desirable > 0.5, desirable_weight, undesirable_weight)
    return _labelled(weight * (-gain).sigmoid(), beta * log_ratio, desirable, gain)


@loss_function
def bco(
    policy: Ragged,
    reference: Ragged,
    desirable: Float[Tensor, " responses"],
    running: Moments,
    weight: Float[Tensor, " responses"],
    *,
    beta: Positive = 0.01,
    delta: Literal["running", "zero"] = "running",
) -> GroupLoss:
    r"""Binary classifier optimisation: is a response's reward above or below the mean reward so far?

    .. math:: -\log\sigma(r_D - \delta) \ \text{or}\ -w(x)\log\sigma\big(-(r_U - \delta)\big), \quad r = \beta\rho

    :math:`\delta` is the running mean of the implicit rewards of all responses, and 0 before the first step. The
    weights :math:`w(x)` are 1 unless the method is given a density ratio (``method.density_ratio``): where desirable
    and undesirable responses belong to different prompts, an undesirable one is weighted by how likely its prompt is to
    be that of a desirable one.

    Source: "Binary Classifier Optimization for Large Language Model Alignment", arXiv:2404.04656, section 3.
    Defaults: beta 0.01, the paper's (section C).
    Differences: TRL had this loss until 1.13 (``experimental.bco``; 1.14 dropped it), with beta 0.1 and statistics that
    a batch enters before it is compared with them; here a step sees the steps before it.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        desirable: label of each response, 1 desirable, 0 undesirable.
        running: statistics of the implicit rewards, a plain average over the run in the published code.
        weight: of each response; 1 for desirable ones.
        beta: 1/nats.
        delta: whether rewards are compared with their running mean or with 0.

    Returns:
        One loss a response; implicit rewards beta * rho, also as ``observed``; diagnostics ``delta`` and those of
        ``kto``.

    Raises:
        ValueError: an option is outside its range.
    """
    reward = beta * policy.log_ratio(reference).sum()
    centre = running.mean if delta == "running" else torch.zeros_like(running.mean)
    gain = _signed(reward - centre, desirable)
    result = _labelled(-weight * F.logsigmoid(gain), reward, desirable, gain)
    result.observed = result.reward
    result.diagnostics["delta"] = centre
    return result


@loss_function
def apo_zero_unpaired(
    policy: Ragged,
    reference: Ragged,
    desirable: Float[Tensor, " responses"],
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> GroupLoss:
    r"""Anchored preference optimisation, zero, without pairs: desirable responses up, undesirable ones down.

    .. math:: \lambda_D\big[1 - \sigma(r_D)\big] \ \text{or}\ \lambda_U\,\sigma(r_U), \quad r = \beta\rho

    KTO with its reference point fixed at 0, so it needs no mismatched rows.

    Source: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    arXiv:2408.06266, eq. 7, term by term.
    Defaults: beta 0.1, the paper's (section 5.2); weights 1.
    Differences: the paper has pairs; the unpaired form is that of TRL 1.16 (``apo_zero_unpaired`` of its KTO trainer).

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        desirable: label of each response, 1 desirable, 0 undesirable.
        beta: 1/nats.
        desirable_weight: weight of desirable responses.
        undesirable_weight: weight of undesirable responses.

    Returns:
        One loss a response, between 0 and its weight; implicit rewards beta * rho; diagnostics as of ``kto``.

    Raises:
        ValueError: an option is outside its range.
    """
    reward = beta * policy.log_ratio(reference).sum()
    gain = _signed(reward, desirable)
    weight = torch.where(desirable > 0.5, desirable_weight, undesirable_weight)
    return _labelled(weight * (-gain).sigmoid(), reward, desirable, gain)


@loss_function
def unlikelihood(
    policy: Ragged,
    desirable: Float[Tensor, " responses"],
    *,
    weight: NonNegative = 1.0,
    reduction: Reduction = "token_mean",
) -> GroupLoss:
    r"""Unlikelihood training: raise the tokens of desirable responses, lower those of undesirable ones.

    .. math:: -\sum_t\log p_t \ \text{or}\ -\alpha\sum_t\log(1 - p_t), \quad p_t = \pi_\theta(y_t)

    Source: "Neural Text Generation with Unlikelihood Training", arXiv:1908.04319, with whole responses as the
    negative candidates, as in "Don't Say That! Making Inconsistent Dialogue Unlikely with Unlikelihood Training",
    arXiv:1911.03860.
    Defaults: weight (the papers' alpha) 1, as in the first paper; the token mean.
    Differences: log(1 - p) is computed from log p without forming 1 - p, and a log-prob above -1e-6 counts as -1e-6 (no
    gradient there), because a certain token would cost infinitely much. Both sums are divided by the mean length of all
    responses of the optimiser step, whatever their label. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy at the scored tokens.
        desirable: label of each response, 1 desirable, 0 undesirable.
        weight: of undesirable responses.
        reduction: how tokens are added up.

    Returns:
        One loss a response; log-probs per token as rewards; diagnostics ``loss/desirable`` and ``loss/undesirable``.

    Raises:
        ValueError: an option is outside its range.
    """
    likely = desirable > 0.5
    token = policy.token.to(torch.promote_types(policy.token.dtype, torch.float32))
    term = torch.where(likely[policy.sequence], token, weight * log1mexp(token))
    loss = negative_log_likelihood(policy.with_token(term), reduction)
    return _labelled(loss, policy.mean(), desirable, None)


def _signed(value: Float[Tensor, " responses"], desirable: Float[Tensor, " responses"]) -> Float[Tensor, " responses"]:
    """The value of a desirable response, minus that of an undesirable one."""
    return torch.where(desirable > 0.5, value, -value)


def _labelled(
    loss: Float[Tensor, " responses"],
    reward: Float[Tensor, " responses"],
    desirable: Float[Tensor, " responses"],
    gain: Float[Tensor, " responses"] | None,
) -> GroupLoss:
    """The result with the diagnostics that every loss here has."""
    constant, chosen = loss.detach(), desirable > 0.5
    diagnostics = {"loss/desirable": constant[chosen], "loss/undesirable": constant[~chosen]}
    if gain is not None:
        diagnostics["reward/accuracy"] = outcomes(gain.detach(), 0.0)
    return GroupLoss(loss, reward.detach(), diagnostics=diagnostics)
