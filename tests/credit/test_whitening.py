"""Whitening against the numbers of "The N Implementation Details of RLHF with PPO"."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.credit.whitening import whiten

X = torch.tensor([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
BIASED = [[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]]
UNBIASED = [[0.1394, 0.5046, 0.8697], [1.2349, 1.6, 1.9651], [2.3303, 2.6954, 3.0606]]


@pytest.mark.parametrize(("unbiased", "expected"), [(False, BIASED), (True, UNBIASED)])
def test_published_numbers(unbiased: bool, expected: list[list[float]]) -> None:
    """Without the mean added back every number is 1.6 lower; the wrong variance is off in the second digit."""
    white = whiten(X, shift_mean=False, unbiased=unbiased)
    torch.testing.assert_close(white, torch.tensor(expected), atol=5e-5, rtol=0)


def test_shifted_numbers_have_mean_0_and_variance_1() -> None:
    white = whiten(X)
    torch.testing.assert_close(white.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(white.var(), torch.tensor(1.0), atol=1e-6, rtol=0)


def test_statistics_are_of_what_counts() -> None:
    mask = torch.ones_like(X, dtype=torch.bool)
    mask[2] = False
    white = whiten(X, mask=mask)
    torch.testing.assert_close(white[:2], whiten(X[:2]))


def test_two_numbers_have_an_unbiased_variance() -> None:
    """Of [1, 3] it is 2; the biased one is 1."""
    torch.testing.assert_close(whiten(torch.tensor([1.0, 3.0])), torch.tensor([-(0.5**0.5), 0.5**0.5]))


def test_equal_or_no_numbers_are_finite() -> None:
    assert whiten(torch.full((4,), 2.0)).abs().max() < 1e-3
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert len(whiten(torch.zeros(0))) == 0
