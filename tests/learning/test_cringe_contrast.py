"""Cringe's contrast, apart from the likelihood that comes with it: alternatives gain on the undesirable tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.claims.case import Case
from tests.learning.harness import gain


@pytest.mark.slow
def test_the_contrast_falls_because_of_its_own_term(tmp_path: Path) -> None:
    """Nats per token of held-out undesirable responses; 5.9 at the base. Without the term it falls by 0.01, with it by
    more than 1. With k=1 nothing is sampled. A flipped loss is no control here: it flattens every distribution, and
    the contrast falls with it.
    """
    claim = {"metric": "val/contrast", "start": 5.9, "falls": True}
    fallen = gain(Case("cringe", **claim), tmp_path / "with")
    without = gain(Case("cringe", ("method.loss.alpha=0.0",), **claim), tmp_path / "without")
    assert fallen > without + 0.9
