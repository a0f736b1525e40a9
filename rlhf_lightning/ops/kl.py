r"""Per-token estimators of KL(policy || reference) from tokens that the policy sampled.

With :math:`\delta_t = \log\pi_\theta(y_t) - \log\pi_{ref}(y_t)`, in nats. As a *value* k1 and k3 are unbiased; k1 is
signed, k3 never negative. As a *loss*, k1's expected gradient is zero and k2 has the on-policy gradient of the KL.

What they estimate, :math:`\sum_v \pi_\theta(v)\,(\log\pi_\theta(v) - \log\pi_{ref}(v))` at each token, is the
``reverse_kl`` of :mod:`rlhf_lightning.ops.divergence`: it takes both models' distributions, not two numbers a token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


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


def k3(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r""":math:`e^{-\delta} - 1 + \delta`: unbiased and never negative.

    Source: http://joschu.net/blog/kl-approx.html; arXiv:2402.03300 eq. 4 (GRPO).
    """
    return torch.expm1(-log_ratio) + log_ratio


def absolute(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r""":math:`|\delta|`: never negative, biased as a value; an option of PPO implementations such as verl's."""
    return log_ratio.abs()


def k3_straight_through(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""The value of k3 with the gradient of k2: unbiased as a value, and on-policy as a loss.

    :math:`\mathrm{sg}(k_3 - k_2) + k_2`, the idea of verl's ``k3+``.
    """
    surrogate = k2(log_ratio)
    return (k3(log_ratio) - surrogate).detach() + surrogate


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": k1,
    "abs": absolute,
    "k2": k2,
    "k3": k3,
    "k3_straight_through": k3_straight_through,
}


def kl(policy: Float[Tensor, " n"], reference: Float[Tensor, " n"], estimator: str = "k1") -> Float[Tensor, " n"]:
    """Per-token estimate of KL(policy || reference) from both models' log-probs of the same tokens.

    Args:
        policy: log-probs of the policy, nats.
        reference: log-probs of the reference, nats.
        estimator: a key of ``ESTIMATORS``.

    Raises:
        ValueError: for an unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; known: {sorted(ESTIMATORS)}")
    return ESTIMATORS[estimator](policy - reference)
