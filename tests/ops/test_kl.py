"""KL estimators by hand, and what each promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.kl import kl

POLICY, REFERENCE = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.2, -1.5, -0.5])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.2, -0.5, 0.0]),  # reference - policy would flip the signs
        ("k2", [0.02, 0.125, 0.0]),
        ("k3", [0.018731, 0.148721, 0.0]),  # exp(+delta) would give 0.0214, 0.1065
        ("k3_straight_through", [0.018731, 0.148721, 0.0]),
        ("abs", [0.2, 0.5, 0.0]),
    ],
)
def test_golden(estimator: str, expected: list[float]) -> None:
    torch.testing.assert_close(kl(POLICY, REFERENCE, estimator), torch.tensor(expected), atol=1e-6, rtol=0)


def test_k3_straight_through_has_the_gradient_of_k2() -> None:
    """That of k3 would be 1 - exp(-delta): 0.18, -0.65, 0."""
    policy = POLICY.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl(policy, REFERENCE, "k3_straight_through").sum(), policy)
    torch.testing.assert_close(gradient, POLICY - REFERENCE)


@given(st.floats(-5, 5))
def test_k3_is_not_negative(delta: float) -> None:
    assert kl(torch.tensor([delta]), torch.zeros(1), "k3").item() >= 0


def test_k1_and_k3_are_unbiased_over_a_whole_distribution() -> None:
    # Expectation over three outcomes drawn from the policy: exactly KL(policy || reference).
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((p * kl(p.log(), q.log(), estimator)).sum(), exact)


@pytest.mark.parametrize(
    ("estimator", "value", "gradient"),
    [
        # Bounded at 20 nats, k1 were 20, k2 200 and every gradient 0.
        ("k1", [-30.0, 30.0], [1.0, 1.0]),
        ("abs", [30.0, 30.0], [-1.0, 1.0]),
        ("k2", [450.0, 450.0], [-30.0, 30.0]),
        ("k3", [math.expm1(20) - 20, 29.0], [0.0, 1.0]),  # exponential below, linear above
        ("k3_straight_through", [math.expm1(20) - 20, 29.0], [-30.0, 30.0]),
    ],
)
def test_only_exponents_are_bounded(estimator: str, value: list[float], gradient: list[float]) -> None:
    log_ratio = torch.tensor([-30.0, 30.0], dtype=torch.float64, requires_grad=True)
    estimate = kl(log_ratio, torch.zeros(2, dtype=torch.float64), estimator)
    torch.testing.assert_close(estimate.detach(), torch.tensor(value, dtype=torch.float64))
    (computed,) = torch.autograd.grad(estimate.sum(), log_ratio)
    torch.testing.assert_close(computed, torch.tensor(gradient, dtype=torch.float64), atol=1e-8, rtol=1e-8)


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match=r"k9.*k1.*k2.*k3"):
        kl(POLICY, REFERENCE, "k9")
