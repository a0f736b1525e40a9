"""Every method learns in the tiny world, and unlearns with the gradient sign flipped."""

from __future__ import annotations

import pytest

from rlhf_lightning.claims.cases import cases
from tests.learning.harness import gain

CASES = cases()


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=() if case.representative else pytest.mark.slow) for case in CASES]
)
def test_learns(case, tmp_path):
    rise = gain(case, tmp_path)
    assert rise > case.margin, f"{case.method}: {case.metric} rose by {rise:.3f}, claimed {case.margin}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_unlearns_when_flipped(case, tmp_path):
    """A loss of the wrong sign, a swapped pair or a sample metric that rises by itself fails here."""
    rise = gain(case, tmp_path, flipped=True)
    assert rise <= case.flipped_limit, f"{case.method} with the gradient sign flipped: {case.metric} rose by {rise:.3f}"
