"""The scalar functions under the losses, where float32 is hardest."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.losses.terms import log1mexp, power_score


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (-1e-4, -9.2103904),  # log(1 - e^-1e-4) = log(1e-4 - 5e-9): log1p(-exp(x)) loses it in float32
        (-0.5, -0.9327521),
        (-0.7, -0.6863413),
        (-20.0, -2.0611537e-9),  # -e^-20: log(-expm1(x)) rounds it to 0
        (-80.0, -1.8048514e-35),
    ],
)
def test_log1mexp_is_exact_at_both_ends(x: float, expected: float) -> None:
    assert log1mexp(torch.tensor([x])).item() == pytest.approx(expected, rel=1e-5)


def test_log1mexp_is_clamped_where_odds_are_infinite() -> None:
    certain = torch.tensor([0.0, -1e-9, -1e-6], requires_grad=True)
    value = log1mexp(certain)
    assert value.tolist() == pytest.approx([math.log(1e-6)] * 3, rel=1e-4)
    value.sum().backward()
    assert certain.grad is not None
    # -p / (1 - p) at 1 - p = 1e-6; a plain clamp has no gradient where a token is to be unlearnt that is certain
    assert certain.grad.tolist() == pytest.approx([-1e6] * 3, rel=1e-3)


@pytest.mark.parametrize("alpha", [1e-3, 0.25, 1.0, -0.5])
def test_power_score(alpha: float) -> None:
    x = torch.tensor([-3.0, -1e-3, 0.0, 2.0])
    expected = [(1 - math.exp(-alpha * v)) / alpha for v in x.tolist()]
    assert power_score(x, alpha).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_power_score_limits() -> None:
    x = torch.tensor([-500.0, 3.0])
    assert power_score(x, 0.0).tolist() == x.tolist()
    # clamped at an exponent of 80, and flat beyond it
    x = torch.tensor([-100.0, -500.0, -79.0], requires_grad=True)
    value = power_score(x, 1.0)
    assert value[0].item() == value[1].item() == pytest.approx(-math.exp(80), rel=1e-5)
    assert value[2].item() == pytest.approx(-math.exp(79), rel=1e-5)
    value.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist()[:2] == [0.0, 0.0]
