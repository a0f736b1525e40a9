"""Outcomes of comparisons, of which accuracies and win rates are means."""

from __future__ import annotations

import numpy as np
import torch

from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.report.statistics import accuracy

FIRST = torch.tensor([2.0, 1.0, 1.0, torch.inf, -torch.inf, 1e-45])
SECOND = torch.tensor([1.0, 2.0, 1.0, torch.inf, 0.0, 0.0])


def test_a_win_a_loss_and_a_tie() -> None:
    """Equal infinities are a tie: their difference is nan, so they are compared and not subtracted."""
    assert outcomes(FIRST, SECOND).tolist() == [1.0, 0.0, 0.5, 0.5, 0.0, 1.0]


def test_both_sides_share_one_point() -> None:
    assert torch.equal(outcomes(FIRST, SECOND) + outcomes(SECOND, FIRST), torch.ones(6))


def test_without_a_number_there_is_no_outcome() -> None:
    nan = torch.nan
    points = outcomes(torch.tensor([nan, 1.0, nan, 1.0]), torch.tensor([1.0, nan, nan, 1.0]))
    assert points.isnan().tolist() == [True, True, True, False]
    assert outcomes(torch.tensor([nan, 0.5, 1.0]), 0.5)[1:].tolist() == [0.5, 1.0]


def test_the_report_counts_as_training_does() -> None:
    """The report computes without torch: the same function, written for numpy."""
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 3, 200).astype(np.float32) for _ in range(2))
    assert accuracy(first, second) == float(outcomes(torch.from_numpy(first), torch.from_numpy(second)).double().mean())
