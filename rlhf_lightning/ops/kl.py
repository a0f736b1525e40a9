r"""Per-token estimators of KL(policy || reference) from tokens that the policy sampled.

With :math:`\delta_t = \log\pi_\theta(y_t) - \log\pi_{ref}(y_t)`, in nats. As a *value* k1 and k3 are unbiased; k1 is
signed, k3 never negative. As a *loss*, k1's expected gradient is zero and k2 has the on-policy gradient of the KL.

What they estimate, :math:`\sum_v \pi_\theta(v)\,(\log\pi_\theta(v) - \log\pi_{ref}(v))` at each token, is the
``reverse_kl`` of :mod:`rlhf_lightning.ops.divergence`: it takes both models' distributions, not two numbers a token.

Only the exponent of k3 is bounded. A bound of :math:`\delta` itself would take the gradient of k1, :math:`|\delta|` and
k2 away from the tokens that have strayed furthest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lightning.ops.exponent import MAX_LOG_RATIO


def k1(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r""":math:`\delta`: the plain Monte Carlo estimator.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    return log_ratio


def k2(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r""":math:`\delta^2 / 2`: biased as a value, low variance, right on-policy gradient as a loss.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    return log_ratio.square() / 2


def k3(log_ratio: Float[Tensor, " n"], max_log_ratio: float = MAX_LOG_RATIO) -> Float[Tensor, " n"]:
    r""":math:`e^{-\delta} - 1 + \delta`: unbiased and never negative.

    Source: http://joschu.net/blog/kl-approx.html; arXiv:2402.03300 eq. 4 (GRPO).

    Args:
        log_ratio: :math:`\delta`, nats.
        max_log_ratio: below its negative, where the exponential would overflow, the estimate is constant; above, where
            the estimate is linear, nothing is bounded.
    """
    bounded = log_ratio.clamp(min=-max_log_ratio)
    return torch.expm1(-bounded) + bounded


def absolute(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r""":math:`|\delta|`: never negative, biased as a value; an option of PPO implementations such as verl's."""
    return log_ratio.abs()


def k3_straight_through(log_ratio: Float[Tensor, " n"], max_log_ratio: float = MAX_LOG_RATIO) -> Float[Tensor, " n"]:
    r"""The value of k3 with the gradient of k2: unbiased as a value, and on-policy as a loss.

    :math:`\mathrm{sg}(k_3 - k_2) + k_2`, the idea of verl's ``k3+``.

    Args:
        log_ratio: :math:`\delta`, nats.
        max_log_ratio: see ``k3``; the gradient has no bound.
    """
    surrogate = k2(log_ratio)
    return (k3(log_ratio, max_log_ratio) - surrogate).detach() + surrogate


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "k1": k1,
    "abs": absolute,
    "k2": k2,
    "k3": k3,
    "k3_straight_through": k3_straight_through,
}
#: Those with an exponential, whose exponent is bounded.
_EXPONENTIAL = frozenset({"k3", "k3_straight_through"})


def estimated(
    log_ratio: Float[Tensor, " n"], estimator: str = "k1", max_log_ratio: float = MAX_LOG_RATIO
) -> Float[Tensor, " n"]:
    r"""Per-token estimate of KL(policy || reference) from log-ratios.

    Args:
        log_ratio: :math:`\delta`, nats.
        estimator: a key of ``ESTIMATORS``.
        max_log_ratio: bound of what is exponentiated, nats; estimators without an exponential have none.

    Raises:
        ValueError: for an unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; known: {sorted(ESTIMATORS)}")
    bound = {"max_log_ratio": max_log_ratio} if estimator in _EXPONENTIAL else {}
    return ESTIMATORS[estimator](log_ratio, **bound)


def kl(policy: Float[Tensor, " n"], reference: Float[Tensor, " n"], estimator: str = "k1") -> Float[Tensor, " n"]:
    """Per-token estimate of KL(policy || reference) from both models' log-probs of the same tokens.

    Args:
        policy: log-probs of the policy, nats.
        reference: log-probs of the reference, nats.
        estimator: a key of ``ESTIMATORS``.

    Raises:
        ValueError: for an unknown estimator.
    """
    return estimated(policy - reference, estimator)
