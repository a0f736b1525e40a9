"""Rank correlation, and the penalties that remove a rating's liking for length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.ops.debias import length_penalties, ranks, spearman


def test_ranks_share_places() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_spearman_by_hand() -> None:
    # Ranks 0 1 2 3 against 1 0 2 3: 1 - 6 * 2 / (4 * 15) = .8
    assert spearman(torch.tensor([1.0, 2.0, 3.0, 9.0]), torch.tensor([5.0, 4.0, 6.0, 7.0])) == pytest.approx(0.8)
    assert spearman(torch.ones(4), torch.arange(4.0)) == 0.0


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=20, unique=True))
def test_spearman_sees_only_the_order(values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    assert spearman(x, torch.exp(x / 500)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)


def test_penalties_are_the_least_that_suffice() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(400, generator=generator) * 100
    quality = torch.randn(400, generator=generator)
    ratings = torch.stack([quality + 0.03 * lengths, quality, lengths / 100], dim=1)
    penalties = length_penalties(ratings, verbosity=2, lengths=lengths)
    debiased = ratings[:, 0] - penalties[0] * ratings[:, 2]
    assert spearman(ratings[:, 0], lengths) > 0.4
    assert abs(spearman(debiased, lengths)) <= 0.03
    assert spearman(ratings[:, 0] - 0.95 * penalties[0] * ratings[:, 2], lengths) > 0.03  # less would not do
    assert penalties[0] == pytest.approx(3.0, abs=0.5)  # 0.03 per token, the rating is length / 100
    assert penalties[1] < 0.3
    assert penalties[2] == 0


def test_a_rating_of_brevity_is_no_verbosity() -> None:
    lengths = torch.arange(10.0)
    with pytest.raises(ValueError, match=r"rating 1 cannot stand for verbosity.*-1\.00"):
        length_penalties(torch.stack([lengths, -lengths], dim=1), verbosity=1, lengths=lengths)
