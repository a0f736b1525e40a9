"""Losses that compare a batch with what earlier batches looked like.

They read ``running``, the mean and standard deviation of the numbers they returned as ``observed`` in earlier optimiser
steps; the method folds those numbers in, over all micro-batches and processes, and keeps the statistics in the
checkpoint. Published code updates its statistics with the current batch first; here a step sees the steps before it, so
that every micro-batch and every process of a step uses the same numbers. Notation: ``losses/terms.py``. Every loss
raises ValueError when an option is outside its range.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from rlhf_lightning.losses.options import FlipRate, NonNegative, Positive, compares_groups, loss_function
from rlhf_lightning.losses.terms import log_ratios, logistic, mean_log_ratios
from rlhf_lightning.types import Moments, Pair, PreferenceLoss


@loss_function
def bco_pair(
    policy: Pair,
    reference: Pair,
    running: Moments,
    *,
    beta: Positive = 0.01,
    delta: Literal["running", "zero"] = "running",
) -> PreferenceLoss:
    r"""Binary classifier optimisation on pairs: is a reward above or below the mean reward so far?

    .. math:: -\log\sigma(r_w - \delta) - \log\sigma\big(-(r_l - \delta)\big), \quad r = \beta\rho

    :math:`\delta` is the running mean of all implicit rewards, chosen and rejected, and 0 before the first step.

    Source: "Binary Classifier Optimization for Large Language Model Alignment", arXiv:2404.04656.
    Defaults: beta 0.01, the paper's (section C).
    Differences: LLaMA-Factory and TRL until 2025 keep the running mean; TRL 1.16 (``bco_pair``) has lost it, which is
    ``delta="zero"``, and its index of papers shows a difference of rewards that its code does not compute.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        running: statistics of the implicit rewards, a plain average over the run in the published code.
        beta: 1/nats.
        delta: whether rewards are compared with their running mean or with 0.

    Returns:
        One loss a pair; implicit rewards beta * rho, also as ``observed``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = (beta * ratio for ratio in log_ratios(policy, reference))
    centre = running.mean if delta == "running" else torch.zeros_like(running.mean)
    loss = -F.logsigmoid(chosen - centre) - F.logsigmoid(centre - rejected)
    rewards = chosen.detach(), rejected.detach()
    return PreferenceLoss(loss, *rewards, observed=torch.cat(rewards), diagnostics={"delta": centre})


@compares_groups(
    "sets beta by the mean gap of a micro-batch",
    option="level",
    when=lambda level: level == "batch",
    instead="method.loss.level=pair",
)
@loss_function
def beta_dpo(
    policy: Pair,
    reference: Pair,
    running: Moments,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 0.6,
    min_beta: Positive = 1e-3,
    level: Literal["batch", "pair"] = "batch",
) -> PreferenceLoss:
    r"""DPO with a dynamic beta: pairs that are further apart than usual are held closer to the reference.

    .. math:: -\log\sigma(\beta' h), \quad \beta' = \max\big(\beta_{\min}, \beta[1 + \alpha(\bar h - M_0)]\big)

    :math:`\bar h` is the mean gap of the micro-batch and :math:`M_0` the running mean of gaps. Before the first step
    :math:`\beta' = \beta` for ``level="batch"``. The new beta is a constant for the gradient.

    Source: "beta-DPO: Direct Preference Optimization with Dynamic beta", arXiv:2407.08639, and its code
    (junkangwu/beta-DPO).
    Defaults: alpha 0.6 and a floor of 1e-3 for beta, from that code; its statistics are a moving average with decay
    0.9.
    Differences: the authors' order is another one. They first fold the batch's own gaps into M_0 (which starts at 0),
    so that a batch d nats above the mean counts as 0.9 d above it; then draw 80 % of the batch at random, preferring
    pairs whose gap is near M_0; then take the mean gap of those for beta, and train on them only. Here M_0 is that of
    the steps before, and all pairs count: the draw drops data and is not offered. They average over all processes; here
    ``batch`` is the whole optimiser step, and a run that cuts a step is refused. ``level="pair"`` gives each pair a
    beta of its own and takes any cut.

    Args:
        policy: log-probs of the policy, summed here over each response.
        reference: log-probs of the reference.
        running: statistics of the gaps h.
        beta: the beta of a usual pair, 1/nats.
        alpha: relative change of beta per nat of gap; 0 is DPO.
        min_beta: the smallest beta, 1/nats.
        level: whether the gap of a pair or the mean gap of the micro-batch sets beta.

    Returns:
        One loss a pair; implicit rewards beta * rho with the unchanged beta; the gaps as ``observed``; the new beta as
        diagnostic ``beta``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = log_ratios(policy, reference)
    gap = chosen - rejected
    observed = gap.detach()
    usual = torch.where(running.count > 0, running.mean, observed.mean())
    current = observed if level == "pair" else observed.mean().expand_as(observed)
    dynamic = (beta * (1 + alpha * (current - usual))).clamp(min=min_beta)
    return PreferenceLoss(
        logistic(dynamic * gap),
        (beta * chosen).detach(),
        (beta * rejected).detach(),
        observed=observed,
        diagnostics={"beta": dynamic},
    )


@loss_function
def alpha_dpo(
    policy: Pair,
    reference: Pair,
    running: Moments,
    *,
    beta: Positive = 2.5,
    gamma: NonNegative = 0.6,
    alpha: NonNegative = 0.2,
    label_smoothing: FlipRate = 0.0,
    eps: Positive = 1e-6,
) -> PreferenceLoss:
    r"""SimPO with a target margin for each pair, larger where the policy has already moved from the reference.

    .. math:: -\log\sigma\big(\beta[\bar\ell_w - \bar\ell_l - \gamma - \alpha z]\big), \quad
              z = \frac{\bar h - \mu}{\sigma},\ \bar h = \bar\rho_w - \bar\rho_l

    :math:`\mu` and :math:`\sigma` are moving averages of the mean and of the standard deviation of :math:`\bar h`
    within a step, and z is a constant for the gradient.

    Source: "alpha-DPO: Adaptive Reward Margin is What Direct Preference Optimization Needs", arXiv:2410.10148, and its
    code (junkangwu/alpha-DPO).
    Defaults: the authors' Llama-3-8B-Instruct setting (beta 2.5, gamma 0.6, alpha 0.2). Mistral-7B: 2.5, 0.15, 0.05;
    Gemma-2-9B: 10, 0.4, 0.05. Their statistics are a moving average with decay 0.9.
    Differences: they fold a batch into their averages before they use them; here a step sees those of the steps before,
    so that it does not depend on how it is cut. Their averages start at 0 without bias correction, and at the very
    first step, where policy and reference are equal, z is 0/0. Here the averages are corrected by the method, and z is
    0 as long as sigma is at most ``eps``. gamma stands inside the bracket that beta multiplies (their
    ``gamma_beta_ratio``); ``simpo`` counts it outside. TRL 1.16 has no such loss.

    Args:
        policy: log-probs of the policy, averaged here over each response.
        reference: log-probs of the reference.
        running: statistics of the gaps per token.
        beta: scale of the log-probs per token, tokens/nats.
        gamma: target margin of every pair, nats per token.
        alpha: weight of the pair's own margin, nats per token and standard deviation; 0 is SimPO.
        label_smoothing: probability that a label is flipped, as in ``cdpo``.
        eps: standard deviation up to which there is nothing to scale by yet, nats per token.

    Returns:
        One loss a pair; rewards beta * (l / n - alpha * rho / n), as the authors log them; the gaps per token as
        ``observed``; the target margin as diagnostic ``target``.

    Raises:
        ValueError: an option is outside its range.
    """
    chosen, rejected = policy.chosen.mean(), policy.rejected.mean()
    chosen_ratio, rejected_ratio = (ratio.detach() for ratio in mean_log_ratios(policy, reference))
    gap = chosen_ratio - rejected_ratio
    z = torch.where(running.std > eps, (gap - running.mean) / running.std.clamp(min=eps), torch.zeros_like(gap))
    target = gamma + alpha * z
    return PreferenceLoss(
        logistic(beta * (chosen - rejected - target), label_smoothing),
        beta * (chosen.detach() - alpha * chosen_ratio),
        beta * (rejected.detach() - alpha * rejected_ratio),
        observed=gap,
        diagnostics={"target": target},
    )
