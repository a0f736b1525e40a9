"""Win matrices: of judges, of scores, of a preference in a circle, and what is none."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.rewards import ComparisonJudge, matrix_from_scores, matrix_of, mean_wins, win_matrices
from rlhf_lightning.world.preference import STYLES, cyclic_win, exploitability, win
from tests.rewards.groups import TOKENIZER, groups

POSITIONS = re.compile(r"Answer A:\n(\w+)\n\nAnswer B:\n(\w+)")


class Judge:
    """Decides by a table of winners; pairs that are not in it get no verdict."""

    def __init__(self, beats: set[tuple[str, str]], silent: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.beats, self.silent, self.asked = beats, silent, 0

    def ask_each(self, conversations: Any, **_: Any) -> list[str | None]:
        shown = [POSITIONS.search(turns[-1]["content"]).groups() for turns in conversations]  # type: ignore[union-attr]
        self.asked += len(shown)
        return [
            None
            if {a, b} & self.silent
            else "[[A]]"
            if (a, b) in self.beats
            else "[[B]]"
            if (b, a) in self.beats
            else "[[C]]"
            for a, b in shown
        ]


CIRCLE = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}


def test_the_matrix_of_a_judge_that_goes_in_a_circle() -> None:
    judge = Judge(CIRCLE)
    reward = ComparisonJudge(TOKENIZER, judge=judge)
    (matrix,) = win_matrices(reward, groups([["rock", "paper", "scissors", "rock"]]))
    assert matrix == [
        [0.5, 0.0, 1.0, 0.5],
        [1.0, 0.5, 0.0, 1.0],
        [0.0, 1.0, 0.5, 0.0],
        [0.5, 0.0, 1.0, 0.5],
    ]
    assert judge.asked == 2 * 5, "both orders of every pair but the two equal responses"
    assert reward(groups([["rock", "paper", "scissors"]])) == [[0.5, 0.5, 0.5]]


def test_what_a_judge_counts_is_counted_with_its_matrices() -> None:
    """Shares of the questions and of the responses; fails where only a call for scores counts the responses."""
    reward = ComparisonJudge(TOKENIZER, judge=Judge(CIRCLE, silent={"paper"}))
    reward.win_matrix(groups([["rock", "paper", "scissors"], ["rock", "paper"]]))
    counts = reward.metrics()
    assert counts["unanswered"] == pytest.approx(6 / 8)
    assert counts["unscored"] == pytest.approx(3 / 5)
    assert reward.metrics()["unanswered"] == 0.0


def test_an_order_without_a_verdict_leaves_the_pair_unknown() -> None:
    reward = ComparisonJudge(TOKENIZER, judge=Judge(CIRCLE, silent={"paper"}))
    (matrix,) = win_matrices(reward, groups([["rock", "paper", "scissors"]]))
    assert matrix == [[0.5, None, 1.0], [None, 0.5, None], [0.0, None, 0.5]]
    assert mean_wins(matrix) == [1.0, None, 0.0]


@given(st.lists(st.floats(-30, 30) | st.none(), min_size=1, max_size=5))
def test_scores_make_a_transitive_matrix(scores: list[float | None]) -> None:
    matrix = matrix_from_scores(scores)
    for i, one in enumerate(scores):
        for j, other in enumerate(scores):
            if i == j:
                assert matrix[i][j] == 0.5
            elif one is None or other is None:
                assert matrix[i][j] is None
            else:
                assert matrix[i][j] == pytest.approx(1 / (1 + math.exp(other - one)), abs=1e-12)
    win_matrices(SimpleNamespace(name="x", win_matrix=lambda _: [matrix]), [_group(len(scores))])


def test_far_scores_do_not_overflow() -> None:
    assert matrix_from_scores([1e4, -1e4]) == [[0.5, 1.0], [0.0, 0.5]]


def test_the_best_of_five_scores() -> None:
    """Scores 2 .. -2: .809289 with itself, .886611 without (SPPO's ranking)."""
    row = matrix_from_scores([2.0, 1.0, 0.0, -1.0, -2.0])
    assert sum(row[0]) / 5 == pytest.approx(0.809289, abs=1e-6)  # type: ignore[arg-type]
    assert mean_wins(row)[0] == pytest.approx(0.886611, abs=1e-6)


def _group(count: int) -> Any:
    return SimpleNamespace(samples=[None] * count, row="data:1", index=0)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.7], [0.2, 0.5]], r"response 1 beats 0 with probability 0.2 and 0 beats 1 with 0.7 \(data:1\)"),
        ([[0.5, 1.5], [-0.5, 0.5]], "they must add up to 1"),
        ([[0.5, -0.5], [1.5, 0.5]], "they must add up to 1"),
        ([[0.5, None], [0.2, 0.5]], "0 beats 1 with None"),
        ([[0.9, 0.5], [0.5, 0.5]], "response 0 beats 0 with probability 0.9"),
        ([[0.5]], r"the win matrix of 2 responses has rows of \[1\]"),
    ],
)
def test_what_is_no_win_matrix(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        win_matrices(SimpleNamespace(name="odd", win_matrix=lambda _: [matrix]), [_group(2)])


def test_other_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"reward 'length' scores each response by itself .*reward=judge, llm_compare"):
        win_matrices(SimpleNamespace(name="length"), [])
    with pytest.raises(ValueError, match="returned 1 win matrices for 0 prompts"):
        win_matrices(SimpleNamespace(name="odd", win_matrix=lambda _: [[]]), [])


def test_pairs_that_nobody_compared_are_unknown() -> None:
    assert matrix_of(3, [(2, 0, 0.75)]) == [[0.5, None, 0.25], [None, 0.5, None], [0.75, None, 0.5]]


def test_styles_go_in_a_circle() -> None:
    for number, one in enumerate(STYLES):
        after = STYLES[(number + 1) % 3]
        assert (cyclic_win(one, after, 0.9), cyclic_win(after, one, 0.9)) == pytest.approx((0.9, 0.1))
        assert cyclic_win(one, one, 0.9) == 0.5
        assert (cyclic_win(one, None, 0.9), cyclic_win(None, one, 0.9)) == pytest.approx((0.9, 0.1))
    assert cyclic_win(None, None, 0.9) == 0.5


def test_only_the_even_mixture_of_styles_cannot_be_exploited() -> None:
    assert exploitability([*STYLES], 0.9) == pytest.approx(0.0)
    assert exploitability([STYLES[0]] * 4, 0.9) == pytest.approx(0.4)
    # 2 polite, 1 plain, 1 rude: rude responses have .9, .9, .1, .5 against them
    assert exploitability([STYLES[0], *STYLES], 0.9) == pytest.approx(0.1)


def test_gold_rewards_as_a_preference() -> None:
    assert win(3.0, 2.0) == pytest.approx(0.731059, abs=1e-6)
    assert win(2.0, 3.0) + win(3.0, 2.0) == pytest.approx(1.0)


def test_equal_responses_have_equal_mean_wins():
    """Responses 1 and 3 meet 0, 2 and each other alike; plain sums in the order of their rows differ by rounding."""
    assert 0.2 + 0.6 + 0.5 != 0.2 + 0.5 + 0.6
    means = mean_wins(matrix_of(4, [(1, 0, 0.2), (3, 0, 0.2), (1, 2, 0.6), (3, 2, 0.6), (1, 3, 0.5), (0, 2, 0.5)]))
    assert means[1] == means[3]
