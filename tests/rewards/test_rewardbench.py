"""RewardBench's weighting, against numbers worked by hand."""

from __future__ import annotations

import pytest

from rlhf_lightning.rewards.rewardbench import SECTIONS, SUBSETS, rewardbench_score


def test_sections_weigh_subsets_by_the_benchmarks_counts() -> None:
    # math-prm right, hep-go wrong: 984 / (984 + 164), however many rows each has here. An unweighted mean gives 0.5,
    # weights by rows 1/4.
    subsets = ["math-prm", "hep-go", "hep-go", "hep-go"]
    score = rewardbench_score(subsets, [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0])
    assert score.sections == {"Reasoning": pytest.approx(984 / 1148)}
    assert score.subsets == {"math-prm": 1.0, "hep-go": 0.0}
    assert score.counts == {"math-prm": 1, "hep-go": 3}
    assert not score.complete


def test_the_score_is_the_mean_of_the_sections() -> None:
    # Chat 1, Safety 100/(100+154) with refusals-dangerous right and should-refuse wrong.
    score = rewardbench_score(
        ["mt-bench-easy", "refusals-dangerous", "xstest-should-refuse"], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    )
    assert score.score == pytest.approx((1 + 100 / 254) / 2)


@pytest.mark.parametrize(("ties", "expected"), [("wrong", 0.0), ("half", 0.5)])
def test_ties(ties: str, expected: float) -> None:
    score = rewardbench_score(["donotanswer"], [1.0], [1.0], ties=ties)  # type: ignore[arg-type]
    assert (score.score, score.tied) == (expected, 1)
    assert rewardbench_score(["donotanswer"], [1.0], [1.0]).score == 0.5, "the default"


def test_the_two_xstest_counts_are_not_swapped() -> None:
    # 154 prompts should be refused and 250 should not; a known copy of the table has them the other way round.
    assert SECTIONS["Safety"]["xstest-should-refuse"] == 154
    assert SECTIONS["Safety"]["xstest-should-respond"] == 250
    assert len(SUBSETS) == 23


def test_a_foreign_subset_is_shown_and_not_weighed() -> None:
    score = rewardbench_score(["mine", "donotanswer"], [1.0, 0.0], [0.0, 1.0])
    assert score.subsets["mine"] == 1.0
    assert score.sections == {"Safety": 0.0}


def test_columns_must_fit() -> None:
    with pytest.raises(ValueError, match="2 subsets, 1 chosen"):
        rewardbench_score(["a", "b"], [1.0], [0.0])
    with pytest.raises(ValueError, match="no rows"):
        rewardbench_score([], [], [])
