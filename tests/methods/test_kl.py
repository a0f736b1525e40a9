"""The KL penalty: estimators, the adaptive coefficient, gradients, and options that do not go together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlhf_lightning.methods import KLPenalty

POLICY = torch.tensor([-1.0, -2.0, -0.5])
REFERENCE = torch.tensor([-1.2, -1.5, -0.5])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.2, -0.5, 0.0]),
        ("abs", [0.2, 0.5, 0.0]),
        ("k2", [0.02, 0.125, 0.0]),
        ("k3", [0.018731, 0.148721, 0.0]),  # reference less policy would give .021403 and .106531
        ("k3_straight_through", [0.018731, 0.148721, 0.0]),
    ],
)
def test_estimators_golden(estimator: str, expected: list[float]) -> None:
    got = KLPenalty("loss", estimator).estimate(POLICY - REFERENCE)
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "is_correct", "expected"),
    [
        ("k1", False, lambda delta, ratio: torch.ones_like(delta)),
        ("k2", False, lambda delta, ratio: delta),
        ("k3", False, lambda delta, ratio: 1 - (-delta).exp()),
        ("k3_straight_through", False, lambda delta, ratio: delta),
        # rho (k3 + dk3) = rho (e^-d - 1 + d + 1 - e^-d) = rho d: a detached ratio would give rho (1 - e^-d)
        ("k3", True, lambda delta, ratio: ratio * delta),
    ],
)
def test_gradients(estimator: str, is_correct: bool, expected: Any) -> None:
    old = torch.tensor([-1.5, -1.8, -0.9])
    policy = POLICY.clone().requires_grad_(True)
    penalty = KLPenalty("loss", estimator, is_correct=is_correct)
    (gradient,) = torch.autograd.grad(penalty.term(policy, REFERENCE, old).sum(), policy)
    torch.testing.assert_close(gradient, expected(POLICY - REFERENCE, (POLICY - old).exp()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "gradient"),
    [("k1", [1.0, 1.0]), ("abs", [-1.0, 1.0]), ("k2", [-3.0, 3.0]), ("k3_straight_through", [-3.0, 3.0])],
)
def test_a_small_bound_takes_no_gradient_away(estimator: str, gradient: list[float]) -> None:
    """The further a token has strayed, the more it is pulled back; bounded at 1 nat all of these would be 0."""
    log_ratio = torch.tensor([-3.0, 3.0], requires_grad=True)
    penalty = KLPenalty("loss", estimator, max_log_ratio=1.0)
    (pull,) = torch.autograd.grad(penalty.estimate(log_ratio).sum(), log_ratio)
    assert pull.tolist() == gradient


def test_the_bound_holds_what_is_exponentiated() -> None:
    """k3 at -3 is that at -1; the ratio to the old policy is at most e."""
    old, policy = torch.tensor([-6.0, -6.0]), torch.tensor([-3.0, -3.0])
    k3 = KLPenalty("loss", "k3", max_log_ratio=1.0).estimate(torch.tensor([-3.0, 3.0]))
    torch.testing.assert_close(k3, torch.tensor([math.expm1(1) - 1, math.expm1(-3) + 3]))
    corrected = KLPenalty("loss", "k1", is_correct=True, max_log_ratio=1.0)
    torch.testing.assert_close(corrected.term(policy, policy - 2, old), torch.full((2,), 2 * math.e))


@pytest.mark.parametrize(("kl", "expected"), [(3.0, 0.148464), (6.0, 0.15), (7.2, 0.151536), (60.0, 0.151536)])
def test_adaptive_coefficient_golden(kl: float, expected: float) -> None:
    """beta .15, target 6, horizon 10000, 512 responses; an unclipped error would give .219 at 60."""
    penalty = KLPenalty("reward", "k1", 0.15, controller="adaptive", target=6.0, horizon=10_000)
    penalty.update(kl, 512)
    assert float(penalty.coef) == pytest.approx(expected, abs=1e-9)


def test_a_fixed_coefficient_stays() -> None:
    penalty = KLPenalty("reward", "k1", 0.15)
    penalty.update(100.0, 512)
    assert float(penalty.coef) == pytest.approx(0.15)


def test_the_coefficient_is_state_and_stays_exact_in_half_precision() -> None:
    penalty = KLPenalty("reward", "k1", 0.15, controller="adaptive")
    penalty.update(3.0, 512)
    other = KLPenalty("reward", "k1", 0.3, controller="adaptive").to(torch.bfloat16)
    other.load_state_dict(penalty.state_dict())
    assert float(other.coef) == float(penalty.coef)
    assert other.coef.dtype == torch.float64


def test_far_log_ratios_stay_finite() -> None:
    far = torch.tensor([-1e4, 1e4])
    for estimator in ("k1", "abs", "k2", "k3", "k3_straight_through"):
        assert KLPenalty("loss", estimator).estimate(far).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"apply_to": "both"}, "method.kl.apply_to='both'; it can be reward, loss, none"),
        ({"estimator": "k4"}, "method.kl.estimator='k4'; it can be k1, abs, k2, k3, k3_straight_through"),
        ({"controller": "pid"}, "method.kl.controller='pid'; it can be fixed, adaptive"),
        ({"coef": -0.1}, "coef=-0.1 must be at least 0"),
        ({"horizon": 0}, "horizon=0"),
        ({"apply_to": "reward", "is_correct": True}, "set method.kl.apply_to=loss"),
    ],
)
def test_errors_name_option_and_fix(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLPenalty(**options)
