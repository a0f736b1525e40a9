"""Rewards of lengths and repetitions, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.rewards import LengthReward, OverlongPenalty, RelativeLength, RepetitionPenalty, Reward
from rlhf_lightning.types import sample_groups
from tests.rewards.groups import TOKENIZER, group


def of_lengths(*lengths: int, **columns: Any) -> Any:
    return sample_groups([[1]], [[[5] * length for length in lengths]], [columns])


@pytest.mark.parametrize(
    ("length", "clip", "linear"),
    [
        (100, 0.0, 0.0),
        (16_384, 0.0, 0.0),
        (18_432, -0.5, -0.5),
        (20_480, -1.0, -1.0),
        (22_528, -1.0, -1.5),
    ],
)
def test_overlong(length: int, clip: float, linear: float):
    """DAPO's own numbers, and what differs past the limit. Breaks with the buffer after the limit, or a share of it."""
    assert OverlongPenalty()(of_lengths(length)) == [[clip]]
    assert OverlongPenalty(beyond="linear")(of_lengths(length)) == [[linear]]
    assert OverlongPenalty(factor=2.0)(of_lengths(length)) == [[2 * clip]]
    assert isinstance(OverlongPenalty(), Reward)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"buffer": 0}, "buffer=0"), ({"max_length": 10}, "buffer=4096"), ({"beyond": "cut"}, "beyond")],
)
def test_overlong_options(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"reward\.{message}"):
        OverlongPenalty(**options)


def test_a_target_for_each_row():
    """L1: minus 0.0003 a token of distance."""
    reward = LengthReward(column="wanted", per_token=0.0003)
    assert reward(of_lengths(10, 30, wanted=20)) == [[pytest.approx(-0.003)] * 2]
    assert reward(of_lengths(10, wanted=None)) == [[None]]
    for check in (lambda: reward(of_lengths(10)), lambda: reward.check_columns(["answer"])):
        with pytest.raises(ValueError, match="'length' needs the column 'wanted'"):
            check()
    with pytest.raises(ValueError, match="from one of them"):
        LengthReward(target=3, column="wanted")


def test_shorter_than_the_others():
    """Golden: lengths 10, 15, 30 give 1/2, 1/4, -1/2. Breaks when short wrong answers keep their bonus."""
    assert RelativeLength()(of_lengths(10, 15, 30)) == [[0.5, 0.25, -0.5]]
    assert RelativeLength()(of_lengths(4, 4)) == [[0.0, 0.0]]

    def judged(prompt: str, response: str) -> float | None:
        return {"r": 1.0, "w": 0.0}.get(response[:1])

    reward = RelativeLength(TOKENIZER, right=judged)
    made = [group(["w", "ww...", "r........", "?"])]  # 2, 6, 10 and 2 tokens
    assert reward(made) == [[0.0, 0.0, -0.5, None]]
    assert RelativeLength(TOKENIZER, right=judged)([group(["r", "w........"])]) == [[0.5, -0.5]]

    def column(prompt: str, response: str, answer: str) -> float:
        return 1.0

    with pytest.raises(ValueError, match="needs the column 'answer'"):
        RelativeLength(TOKENIZER, right=column).check_columns([])


@pytest.mark.parametrize(
    ("text", "n", "penalty"),
    [
        ("a b a b a b", 2, -0.6),  # ab ba ab ba ab: 2 of 5 are distinct
        ("a B A b a b", 2, -0.6),
        ("a b c d", 2, 0.0),
        ("a a a a", 1, -0.75),
        ("a b", 3, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition(text: str, n: int, penalty: float):
    assert RepetitionPenalty(TOKENIZER, n=n)([group([text])])[0] == pytest.approx([penalty])
    assert RepetitionPenalty(TOKENIZER, n=n, penalty=2.0)([group([text])])[0] == pytest.approx([2 * penalty])


def test_repetition_of_tokens():
    made = sample_groups([[1]], [[[5, 5, 5, 2]]])
    assert RepetitionPenalty(unit="token", n=2)(made)[0] == pytest.approx([-1 / 3])
    for options in ({}, {"unit": "letter"}, {"n": 0}, {"penalty": -1.0}):
        with pytest.raises(ValueError, match=r"reward\."):
            RepetitionPenalty(**options)
