"""Numbers of a round's samples, worked out by hand."""

from __future__ import annotations

import math

import pytest

from rlhf_lightning.report.sample_statistics import correlation, distinct, mean, tie_rate

NAN = math.nan


@pytest.mark.parametrize(
    ("responses", "n", "value"),
    [
        ([[1, 2, 1]], 1, 2 / 3),  # 1, 2 of three
        ([[1, 2, 1]], 2, 1.0),  # 1 2, 2 1
        ([[1, 2, 1, 2]], 2, 2 / 3),  # 1 2, 2 1, 1 2
        ([[1, 2], [1, 2]], 2, 0.5),  # the same in two responses; 2 1 across them is none
        ([[1, 2], [3]], 2, 1.0),  # a response shorter than n has no n-gram
        ([["a", "b", "c"], ["b", "c", "d"]], 3, 1.0),
        ([["a", "b", "c"], ["b", "c", "d"]], 2, 3 / 4),  # ab, bc, bc, cd
    ],
)
def test_distinct(responses, n, value):
    assert distinct(responses, n) == value


@pytest.mark.parametrize("responses", [[], [[]], [[1]]])
def test_distinct_is_nan_without_n_grams(responses):
    assert math.isnan(distinct(responses, 2))


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], 1.0),
        ([1.0, 2.0, 3.0], [5.0, 3.0, 1.0], -1.0),
        ([0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], 0.0),
        ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], 0.5),  # deviations -1 0 1 and -1 1 0: 1 / (sqrt 2 sqrt 2)
        ([1.0, NAN, 2.0, 3.0], [1.0, 9.0, 3.0, 2.0], 0.5),  # an unscored sample is left out
    ],
)
def test_correlation(first, second, value):
    assert correlation(first, second) == pytest.approx(value, abs=1e-12)
    assert correlation(second, first) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("second", [[], [1.0], [2.0, 2.0], [NAN, 1.0]])
def test_no_correlation_without_variation(second):
    assert math.isnan(correlation([*range(len(second))], second))


@pytest.mark.parametrize(
    ("groups", "value"),
    [
        ([[1.0, 1.0]], 1.0),
        ([[1.0, 2.0]], 0.0),
        ([[1.0, 1.0, 2.0]], 1 / 3),
        ([[0.0, 0.0, 1.0, 1.0]], 2 / 6),
        ([[1.0, 1.0], [1.0, 2.0]], 0.5),  # equal scores of two prompts are no tie
        ([[1.0, 1.0], [3.0]], 1.0),  # one response is in no pair
        ([[1.0, NAN, NAN], [2.0, 2.0]], 1.0),  # and neither are unscored ones
    ],
)
def test_tie_rate(groups, value):
    assert tie_rate(groups) == value


def test_tie_rate_is_nan_without_pairs():
    assert math.isnan(tie_rate([[1.0], [NAN, 2.0], []]))


def test_mean_of_the_finite():
    assert mean([1.0, NAN, 2.0, math.inf]) == 1.5
    assert math.isnan(mean([NAN]))
