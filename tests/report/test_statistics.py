"""Pooled numbers, curves, the Pareto front and bins, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.report.sensitivity import tick_labels
from rlhf_lightning.report.statistics import Pooled, band, edges, pareto_front, pooled, rounded, thinned

NAN = math.nan


def curve(steps, values):
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def test_pooled_by_hand():
    """Denominator n - 1: of 1, 2, 6 the variance is 14 / 2. A population variance would give 2.16."""
    value = pooled([1.0, 2.0, 6.0, NAN, math.inf])
    assert (value.mean, value.n) == (3.0, 3)
    assert value.std == pytest.approx(math.sqrt(7))
    assert (pooled([5.0]).mean, pooled([5.0]).n, math.isnan(pooled([5.0]).std)) == (5.0, 1, True)
    assert pooled([]).n == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Pooled(0.81234, 0.03081, 3), "0.812 ± 0.031"),
        (Pooled(0.812, NAN, 1), "0.8120"),
        (Pooled(-23.5, 4.81, 3), "-23.5 ± 4.8"),
        (Pooled(1234.0, 56.0, 3), "1234 ± 56"),
        (Pooled(0.0, 0.0, 3), "0.0 ± 0.0"),
        (Pooled(1e-9, 2e-10, 3), "1.00e-09 ± 2.0e-10"),
        (Pooled(NAN, NAN, 0), ""),
    ],
)
def test_as_many_digits_as_the_spread_leaves(value, text):
    assert str(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (12345.678, "12346"), (0.00001, "1.00e-05"), (-0.5, "-0.5000"), (NAN, "nan")]
)
def test_rounded(value, text):
    assert rounded(value) == text


def test_thinned_is_the_mean_of_neighbours():
    steps, values = thinned(curve([0, 1, 2, 3], [1, 3, 10, 20]), 2)
    assert (steps.tolist(), values.tolist()) == ([0.5, 2.5], [2.0, 15.0])
    assert thinned(curve([0, 1], [1, 3]), 2)[1].tolist() == [1.0, 3.0]
    assert thinned(curve(range(5), [0, 2, 4, 6, 9]), 4)[1].tolist() == [1.0, 5.0, 9.0]  # not 1, 4, 6, 9


def test_band_by_hand():
    """Seeds at different steps are interpolated; the band ends where the shorter one does."""
    one = band([curve([0, 2, 4], [0.0, 2.0, 4.0]), curve([0, 1, 2, 3], [1.0, 1.0, 5.0, 3.0])])
    assert one.steps.tolist() == [0, 1, 2, 3]
    assert one.mean.tolist() == [0.5, 1.0, 3.5, 3.0]
    assert one.low.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert one.high.tolist() == [1.0, 1.0, 5.0, 3.0]


def test_band_of_a_resumed_run_takes_the_later_value():
    one = band([curve([0, 1, 2, 1, 2], [5.0, 6.0, 7.0, 8.0, 9.0])])
    assert (one.steps.tolist(), one.mean.tolist()) == ([0, 1, 2], [5.0, 8.0, 9.0])


def test_band_without_a_common_step():
    one = band([curve([0, 1], [1.0, 2.0]), curve([5, 6], [4.0, 8.0])])
    assert (one.mean.tolist(), one.low.tolist(), one.high.tolist()) == ([3.0], [2.0], [4.0])


def test_pareto_front_by_hand():
    """Point 1 costs as much as point 0 and gives less; 3 costs more than 2 and gives no more; 5 is no point."""
    points = [(1.0, 1.0), (1.0, 0.5), (2.0, 3.0), (3.0, 3.0), (4.0, 5.0), (NAN, 9.0), (0.5, -1.0)]
    assert pareto_front(points) == [6, 0, 2, 4]


def test_equal_points_are_both_on_the_front():
    assert pareto_front([(1.0, 1.0), (1.0, 1.0), (0.0, 2.0), (0.0, 2.0)]) == [2, 3]


def test_tick_labels_leave_room():
    """From the right: 0.7 is too near to 0.9 on a logarithmic axis, and would be far enough on a linear one."""
    betas = [0.01, 0.1, 0.3, 0.5, 0.7, 0.9]
    assert tick_labels(betas, logarithmic=True) == ["0.01", "0.1", "0.3", "0.5", "", "0.9"]
    assert tick_labels(betas, logarithmic=False) == ["0.01", "0.1", "0.3", "0.5", "0.7", "0.9"]


NUMBERS = st.integers(-5, 5).map(float)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20))
def test_the_front_is_what_nothing_dominates(points):
    def dominated(i):
        x, y = points[i]
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)

    assert sorted(pareto_front(points)) == [i for i in range(len(points)) if not dominated(i)]


def test_edges_hold_the_inner_values():
    values = np.concatenate([np.linspace(-1, 1, 1000), [1e6]]).astype(np.float32)
    bins = edges(values, values)
    assert len(bins) == 31
    assert bins[0] < -0.97
    assert 0.97 < bins[-1] < 1.2
    same = np.full(3, 2.0, dtype=np.float32)
    assert edges(same, same)[0] < 2.0 < edges(same, same)[-1]
