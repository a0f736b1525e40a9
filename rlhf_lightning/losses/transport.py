"""Losses that compare distributions over the batch: alignment via optimal transport.

In one dimension optimal transport is sorting, so pair i of the loss is the i-th quantile of the batch, not the i-th
row. The quantiles are those of the pairs that the loss is called with, which must be a whole optimiser step: a run that
cuts a step into micro-batches or deals it to processes is refused. At one pair a step both losses are DPO.
Notation: ``losses/terms.py``. Every loss raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from rlhf_lightning.losses.options import FlipRate, Positive, compares_groups, loss_function
from rlhf_lightning.losses.terms import log_ratios, logistic, summed_margin
from rlhf_lightning.types import Pair, PreferenceLoss


@compares_groups("sorts the pairs of a micro-batch")
@loss_function
def aot(policy: Pair, reference: Pair, *, beta: Positive = 0.01, label_smoothing: FlipRate = 0.0) -> PreferenceLoss:
    r"""Alignment via optimal transport, paired: the policy's margins dominate the reference's, quantile by quantile.

    .. math:: -\log\sigma\big(\beta(u_{(i)} - v_{(i)})\big), \quad u = \ell_w - \ell_l,\ v = u_\mathrm{ref},
              \text{ each sorted over the batch}

    Source: "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv:2406.05882.
    Defaults: beta 0.01, as in TRL's index of papers.
    Differences: none to TRL 1.16 (``aot``), which sorts within a process too. Older TRL gave this name's partner
    ``aot_unpaired`` the name ``aot_pair``.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: 1/nats.
        label_smoothing: probability that a label is flipped, as in ``cdpo``.

    Returns:
        One loss a quantile; implicit rewards beta * rho in the order of the pairs.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    margin, reference_margin = (summed_margin(log_probs).sort().values for log_probs in (policy, reference))
    loss = logistic(beta * (margin - reference_margin), label_smoothing)
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())


@compares_groups("sorts the responses of a micro-batch")
@loss_function
def aot_unpaired(
    policy: Pair, reference: Pair, *, beta: Positive = 0.01, label_smoothing: FlipRate = 0.0
) -> PreferenceLoss:
    r"""Alignment via optimal transport, unpaired: chosen log-ratios dominate rejected ones, quantile by quantile.

    .. math:: -\log\sigma\big(\beta(\rho_{w,(i)} - \rho_{l,(i)})\big), \quad \text{each sorted over the batch}

    Chosen and rejected responses need not share a prompt; there are equally many of both.

    Source: "Distributional Preference Alignment of LLMs via Optimal Transport", arXiv:2406.05882.
    Defaults: beta 0.01, as in TRL's index of papers.
    Differences: none to TRL 1.16 (``aot_unpaired``; called ``aot_pair`` in older TRL).

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        beta: 1/nats.
        label_smoothing: probability that a label is flipped, as in ``cdpo``.

    Returns:
        One loss a quantile; implicit rewards beta * rho in the order of the pairs.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    loss = logistic(chosen.sort().values - rejected.sort().values, label_smoothing)
    return PreferenceLoss(loss, chosen.detach(), rejected.detach())
