r"""The pieces that losses are made of: log-ratios, likelihood terms, stable scalar functions.

Notation of the docstrings in this package: :math:`w` is the chosen and :math:`l` the rejected response,
:math:`\ell = \sum_t \log\pi_\theta(y_t)` sums log-probs over a response's scored tokens (the end-of-sequence token
is one of them), :math:`n` counts those tokens, :math:`\bar\ell = \ell / n`,
:math:`\rho = \ell - \ell_\mathrm{ref}` is the log-ratio to the reference and :math:`h = \rho_w - \rho_l`.
Everything is in nats.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.ops.segments import segment_sum
from rlhf_lightning.types import Pair, Ragged

#: How a likelihood term adds up its tokens; see ``negative_log_likelihood``.
Reduction = Literal["token_mean", "response_mean", "sum"]

#: exp(80) is near 6e34: the largest power that float32 holds with room for sums and products.
MAX_EXPONENT = 80.0
#: Below it 1 - exp(x) is no longer resolved in float32.
MAX_LOG_PROB = -1e-6


def log_ratios(policy: Pair, reference: Pair) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Summed log-ratios of the chosen and of the rejected responses, in nats."""
    return policy.chosen.log_ratio(reference.chosen).sum(), policy.rejected.log_ratio(reference.rejected).sum()


def mean_log_ratios(policy: Pair, reference: Pair) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Log-ratios per token of the chosen and of the rejected responses, in nats per token."""
    return policy.chosen.log_ratio(reference.chosen).mean(), policy.rejected.log_ratio(reference.rejected).mean()


def summed_margin(log_probs: Pair) -> Float[Tensor, " pairs"]:
    """Summed log-probs of the chosen responses less those of the rejected ones, in nats, rounded once."""
    chosen, rejected = log_probs.chosen, log_probs.rejected
    token = torch.cat([chosen.token, -rejected.token])
    return segment_sum(token, torch.cat([chosen.sequence, rejected.sequence]), chosen.count)


def logistic(margin: Float[Tensor, " pairs"], label_smoothing: float = 0.0) -> Float[Tensor, " pairs"]:
    """Cross-entropy of "chosen is better", with logit ``margin`` and labels flipped at rate ``label_smoothing``."""
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def negative_log_likelihood(responses: Ragged, reduction: Reduction = "token_mean") -> Float[Tensor, " responses"]:
    """One likelihood term a response, so that the mean over responses is the reduction that was asked for.

    Args:
        responses: log-probs of the policy.
        reduction: ``token_mean`` divides by the mean length over the whole optimiser step, so that the mean over
            responses is the mean over all tokens of the step, however it was cut into micro-batches;
            ``response_mean`` weighs every response equally; ``sum`` weighs long responses more.

    Returns:
        nats per token; nats for ``sum``.
    """
    if reduction == "token_mean":
        return -responses.sum() / responses.step_length
    return -(responses.mean() if reduction == "response_mean" else responses.sum())


def power_score(log_value: Float[Tensor, " n"], alpha: float) -> Float[Tensor, " n"]:
    r""":math:`(1 - e^{-\alpha x}) / \alpha`, which is :math:`x` in the limit :math:`\alpha \to 0`.

    The exponent is clamped at 80, where float32 would soon overflow; beyond it the gradient is 0.
    """
    if abs(alpha) < 1e-6:
        return log_value
    return -torch.expm1((-alpha * log_value).clamp(max=MAX_EXPONENT)) / alpha


def log1mexp(log_prob: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r""":math:`\log(1 - e^x)` for :math:`x < 0`, exact at both ends.

    Near 0 it uses ``log(-expm1(x))`` and below -ln 2 ``log1p(-exp(x))``. ``x`` is clamped at -1e-6, because a response
    of probability 1 would have infinite odds. The gradient beyond is that at the clamp, not 0: what is to become less
    likely is pulled down from the highest probabilities too.
    """
    x = log_prob + (log_prob.clamp(max=MAX_LOG_PROB) - log_prob).detach()
    return torch.where(x < -math.log(2), torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))


def log_odds_ratio(policy: Pair) -> Float[Tensor, " pairs"]:
    r""":math:`\log\frac{p_w}{1 - p_w} - \log\frac{p_l}{1 - p_l}` with :math:`p = e^{\bar\ell}`, a mean over tokens.

    With sums instead of means 1 - p would be 1, and the odds the probability itself.
    """
    chosen, rejected = policy.chosen.mean(), policy.rejected.mean()
    return (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
