"""Losses that look at the chosen and the rejected response one by one, not only at their difference.

Each response has a target of its own, so adding a constant to both log-ratios changes these losses. That anchor keeps
the chosen response's log-prob from falling together with the rejected one's, which difference losses allow. Notation:
``losses/terms.py``, and ``r = beta * rho``. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.losses.options import Positive, compares_groups, loss_function
from rlhf_lightning.losses.terms import log_ratios
from rlhf_lightning.types import Pair, PreferenceLoss


@loss_function
def nca(policy: Pair, reference: Pair, *, beta: Positive = 0.01) -> PreferenceLoss:
    r"""Noise contrastive alignment for pairs: classify policy samples against reference samples.

    .. math:: -\log\sigma(r_w) - \tfrac12\log\sigma(-r_w) - \tfrac12\log\sigma(-r_l)

    Source: "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv:2402.05369.
    Defaults: beta 0.01, the paper's alpha (section C).
    Differences: none to TRL 1.16 (``nca_pair``).

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: 1/nats.

    Returns:
        One loss a pair; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    loss = -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


@loss_function
def sppo(policy: Pair, reference: Pair, *, beta: Positive = 1e-3) -> PreferenceLoss:
    r"""Self-play preference optimisation, hard labels: regress each log-ratio on its own target.

    .. math:: \tfrac12\Big[\Big(\rho_w - \frac{1}{2\beta}\Big)^2 + \Big(\rho_l + \frac{1}{2\beta}\Big)^2\Big]

    Source: "Self-Play Preference Optimization for Language Model Alignment", arXiv:2405.00675, algorithm 1 with win
    probabilities 1 and 0; the half as in the authors' code (uclaml/SPPO).
    Defaults: beta 1e-3 (eta = 1000): the targets are 500 nats away, so gradients are large; clip them.
    Differences: the paper regresses on :math:`(P_i - 1/2)/\beta`, with a win probability :math:`P_i` against the
    current policy from a preference model over several samples, and repeats this with the last policy as reference:
    ``sppo_soft``. This is the authors' loss with probabilities 1 and 0, for pairs that carry none, and half of TRL
    1.16's (``sppo_hard``), which adds the two squares where the authors average them.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference; over rounds, the policy of the previous round.
        beta: the inverse of the paper's eta, 1/nats.

    Returns:
        One loss a pair, in nats squared; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    return regressed(policy, reference, (0.5 / beta, -0.5 / beta), beta)


def regressed(
    policy: Pair, reference: Pair, targets: tuple[float | Tensor, float | Tensor], beta: float
) -> PreferenceLoss:
    """Half the squared distances of both log-ratios from their targets, in nats; rewards beta times the log-ratios."""
    chosen, rejected = log_ratios(policy, reference)
    loss = ((chosen - targets[0]).square() + (rejected - targets[1]).square()) / 2
    return PreferenceLoss(loss, (beta * chosen).detach(), (beta * rejected).detach())


@loss_function
def apo_zero(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> PreferenceLoss:
    r"""Anchored preference optimisation, zero: push chosen responses up and rejected ones down.

    .. math:: 1 - \sigma(r_w) + \sigma(r_l)

    For chosen responses that are better than what the model writes itself.

    Source: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    arXiv:2408.06266, eq. 7.
    Defaults: beta 0.1, the paper's (section 5.2).
    Differences: none to TRL 1.16 (``apo_zero``).

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: 1/nats.

    Returns:
        One loss a pair, between 0 and 2; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    return PreferenceLoss((-chosen).sigmoid() + rejected.sigmoid(), chosen.detach(), rejected.detach())


@loss_function
def apo_down(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> PreferenceLoss:
    r"""Anchored preference optimisation, down: push chosen responses down and rejected ones down more.

    .. math:: \sigma(r_w) + 1 - \sigma(r_w - r_l)

    For a model that already writes better than the chosen responses.

    Source: "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    arXiv:2408.06266, eq. 8.
    Defaults: beta 0.1, the paper's (section 5.2).
    Differences: none to TRL 1.16 (``apo_down``).

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: 1/nats.

    Returns:
        One loss a pair, between 0 and 2; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    return PreferenceLoss(chosen.sigmoid() + (rejected - chosen).sigmoid(), chosen.detach(), rejected.detach())


@compares_groups("takes the means of a micro-batch for its reference points")
@loss_function
def kto_pair(policy: Pair, reference: Pair, *, beta: Positive = 0.1, detach_kl: bool = False) -> PreferenceLoss:
    r"""KTO on pairs: each half of the batch estimates the other half's reference point.

    .. math:: \tfrac12\big[1 - \sigma(\beta(\rho_w - K_l))\big] + \tfrac12\big[1 - \sigma(\beta(K_w - \rho_l))\big],
              \quad K = \max(0, \mathrm{mean}\,\rho)

    At the first step, where policy and reference are equal and K is 0, gradients still pass through K, as through the
    published code's ``clamp``. The means run over the pairs of the whole optimiser step: a run that cuts a step into
    micro-batches or deals it to processes is refused.

    Source: "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306, in the paired form that TRL had
    from December 2023 and has since removed; copies of it are in the code of SPPO and alpha-DPO. It is the "KTO" of
    Hugging Face's 2024 comparison of DPO, IPO and KTO.
    Defaults: beta 0.1, as in HALOs and TRL.
    Differences: KTO proper takes unpaired responses, estimates one reference point from mismatched pairs of prompt and
    response, and detaches it. The paired form let gradients through; ``detach_kl=True`` does not. TRL concatenated both
    halves into 2B losses, so its mean is the mean of the two halves, as here.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: 1/nats.
        detach_kl: treat the reference points as constants.

    Returns:
        One loss a pair, between 0 and 1; implicit rewards beta * rho.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = log_ratios(policy, reference)
    chosen_kl, rejected_kl = (ratio.mean().clamp(min=0) for ratio in (chosen, rejected))
    if detach_kl:
        chosen_kl, rejected_kl = chosen_kl.detach(), rejected_kl.detach()
    gain = (beta * (chosen - rejected_kl)).sigmoid() + (beta * (chosen_kl - rejected)).sigmoid()
    return PreferenceLoss(1 - 0.5 * gain, (beta * chosen).detach(), (beta * rejected).detach())
