"""Rank correlation, and the penalties that free ratings from the rating of verbosity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.debias import SHARES, ranks, spearman, verbosity_penalties


def test_ranks_share_places() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_spearman_by_hand() -> None:
    # Ranks 0 1 2 3 against 1 0 2 3: 1 - 6 * 2 / (4 * 15) = .8
    assert spearman(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([5.0, 4.0, 6.0, 7.0])) == pytest.approx(0.8)
    assert spearman(torch.ones(4), torch.arange(4.0)) == 0.0
    assert spearman(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 7.0])) == pytest.approx(1.0)


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=20, unique=True))
def test_spearman_sees_only_the_order(values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    assert spearman(x, torch.exp(x / 500)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)


def test_penalties_golden() -> None:
    """Ratings of six responses; the shares are what find_proper_verbosity_penalties of the authors' code returns.

    Catches a correlation with anything but the rating itself, two-sided bounds, and a verbosity rating that is kept.
    """
    verbosity = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    ratings = torch.tensor(
        [
            [0.52, 0.2, 0.9, 0.4, 0.8, 0.63],
            [2.0, 1.0, 4.0, 3.0, 6.0, 5.0],
            verbosity,
            [6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
            [3.0, 6.0, 9.0, 12.0, 15.0, 18.0],
        ]
    ).T
    assert verbosity_penalties(ratings, verbosity=2).tolist() == pytest.approx([0.075, 1.0, 1.0, 0.0, 1.0])


def test_the_grid_is_that_of_the_authors() -> None:
    assert SHARES[:10] == pytest.approx((0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25))
    assert SHARES[-1] == pytest.approx(0.95)
    assert len(SHARES) == 24


def test_penalties_are_the_least_that_suffice() -> None:
    generator = torch.Generator().manual_seed(0)
    verbosity = torch.rand(400, generator=generator)
    quality = torch.randn(400, generator=generator)
    ratings = torch.stack([quality + 0.4 * verbosity, -verbosity, verbosity], dim=1)
    penalties = verbosity_penalties(ratings, verbosity=2)
    least = SHARES.index(pytest.approx(penalties[0].item()))
    assert spearman(ratings[:, 0] - SHARES[least] * verbosity, verbosity) <= 0.03
    assert spearman(ratings[:, 0] - SHARES[least - 1] * verbosity, verbosity) > 0.03
    assert penalties[1:].tolist() == [0.0, 1.0]  # what falls with verbosity is left alone


def test_a_correlation_at_the_bound_is_enough() -> None:
    # Ranks 1 3 0 2 against 0 1 2 3: deviations -.5 1.5 -1.5 .5 and -1.5 -.5 .5 1.5, whose product is exactly 0.
    ratings = torch.tensor([[2.0, 4.0, 1.0, 3.0], [1.0, 2.0, 3.0, 4.0]]).T
    assert verbosity_penalties(ratings, verbosity=1, bound=0.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("count", [1, 10])
def test_a_constant_rating_is_no_verbosity(count: int) -> None:
    ratings = torch.stack([torch.arange(count).float(), torch.ones(count)], dim=1)
    with pytest.raises(ValueError, match=rf"rating 1 cannot stand for verbosity: .* for all {count} responses"):
        verbosity_penalties(ratings, verbosity=1)
