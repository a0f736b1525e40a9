r"""Per-token estimators of KL(policy || reference) from tokens that the policy sampled.

With :math:`\delta_t = \log\pi_\theta(y_t) - \log\pi_{ref}(y_t)`, in nats. As a *value* k1 and k3 are unbiased; k1 is
signed, k3 never negative. As a *loss*, k1's expected gradient is zero and k2 has the on-policy gradient of the KL.
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


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl(policy: Float[Tensor, " n"], reference: Float[Tensor, " n"], estimator: str = "k1") -> Float[Tensor, " n"]:
    """Per-token estimate of KL(policy || reference) from both models' log-probs of the same tokens.

    Args:
        policy: log-probs of the policy, nats.
        reference: log-probs of the reference, nats.
        estimator: ``k1``, ``k2`` or ``k3``.

    Raises:
        ValueError: for an unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; known: {sorted(ESTIMATORS)}")
    return ESTIMATORS[estimator](policy - reference)
