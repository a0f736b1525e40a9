"""KL estimators by hand, and what each promises."""

from __future__ import annotations

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
    ],
)
def test_golden(estimator: str, expected: list[float]) -> None:
    torch.testing.assert_close(kl(POLICY, REFERENCE, estimator), torch.tensor(expected), atol=1e-6, rtol=0)


@given(st.floats(-5, 5))
def test_k3_is_not_negative(delta: float) -> None:
    assert kl(torch.tensor([delta]), torch.zeros(1), "k3").item() >= 0


def test_k1_and_k3_are_unbiased_over_a_whole_distribution() -> None:
    # Expectation over three outcomes drawn from the policy: exactly KL(policy || reference).
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((p * kl(p.log(), q.log(), estimator)).sum(), exact)


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match=r"k9.*k1.*k2.*k3"):
        kl(POLICY, REFERENCE, "k9")
