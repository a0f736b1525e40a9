"""Methods without labels: TTRL moves single responses towards the first model's majority, RLSC sharpens responses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learning.questions import before_and_after

FLIPPED = "+callbacks.flipped._target_=tests.learning.harness.FlippedGradients"
ALL = ("fact", "description", "advice")


@pytest.mark.slow
def test_ttrl_approaches_the_first_models_majority_vote(tmp_path: Path) -> None:
    """Single responses are right in 56 of 100 cases, the majority of 32 always; no label is ever read."""
    before, after = before_and_after(tmp_path / "run", "method=ttrl", "data.source.size=512")
    gap = before["majority"] - before["pass@1"]
    assert gap > 0.3, "the base's majority is more often right than its single responses"
    assert after["pass@1"] > before["pass@1"] + gap / 2
    assert after["majority"] >= before["majority"] - 0.05
    _, flipped = before_and_after(tmp_path / "flipped", "method=ttrl", "data.source.size=512", FLIPPED)
    assert flipped["pass@1"] < before["pass@1"]


@pytest.mark.slow
def test_rlsc_makes_single_responses_better(tmp_path: Path) -> None:
    """20 gentle steps: 56 to 86 of 100 single responses are right, at a fifth of the entropy."""
    before, after = before_and_after(tmp_path / "run", "method=rlsc")
    assert after["pass@1"] > before["pass@1"] + 0.15
    assert after["entropy"] < before["entropy"] / 2
    _, flipped = before_and_after(tmp_path / "flipped", "method=rlsc", FLIPPED)
    assert flipped["pass@1"] < before["pass@1"]
    assert flipped["entropy"] > before["entropy"]


@pytest.mark.slow
def test_rlsc_in_a_hurry_trades_variety_for_single_responses(tmp_path: Path) -> None:
    """10 steps four times as long: single responses still get better, and every third question is lost for good.

    Of 32 samples at least one was right for every question before; afterwards the policy repeats its favourite.
    """
    hurry = ("data.source.topics=null", "data.source.size=320", "optimizer.lr=2e-3")
    before, after = before_and_after(tmp_path / "run", "method=rlsc", *hurry, topics=ALL)
    assert after["pass@1"] > before["pass@1"] + 0.05
    assert after["entropy"] < before["entropy"] / 4
    assert after["pass@k"] < before["pass@k"] - 0.1
