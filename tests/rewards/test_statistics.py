"""Statistics of rewards against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.rewards.statistics import (
    calibration_error,
    length_statistics,
    preference_statistics,
    reward_statistics,
)


def test_agreement_with_pairs() -> None:
    # Margins ln 3, -ln 3, 0 and ln 9: sigma .75 .25 .5 .9; confidence .75 .75 .5 .9, right 1 0 1/2 1.
    chosen = torch.tensor([math.log(3), 0.0, 1.0, math.log(9)])
    statistics = preference_statistics(chosen, torch.tensor([0.0, math.log(3), 1.0, 0.0]))
    assert statistics["accuracy"] == 2.5 / 4
    assert statistics["ties"] == 0.25
    assert statistics["margin"] == pytest.approx(math.log(9) / 4)
    assert statistics["log_loss"] == pytest.approx(-sum(map(math.log, (0.75, 0.25, 0.5, 0.9))) / 4, rel=1e-6)
    # bins: {.75, .75} half right: gap .25 x 2; {.5} half right: 0; {.9} right: .1; mean over 4
    assert statistics["calibration_error"] == pytest.approx((2 * 0.25 + 0.1) / 4, abs=1e-6)


def test_the_accuracy_of_a_swap_is_one_minus_it() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 0.0, -torch.inf]), torch.tensor([0.0, 0.0, 0.5, -torch.inf])
    accuracy = preference_statistics(chosen[:3], rejected[:3])["accuracy"]
    assert accuracy == preference_statistics(rejected[:3], chosen[:3])["accuracy"] == 0.5
    assert preference_statistics(torch.zeros(5), torch.zeros(5))["calibration_error"] == 0


def test_certain_rewards_are_in_the_last_bin() -> None:
    confidence, right = torch.tensor([1.0, 0.99, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    assert calibration_error(confidence, right) == pytest.approx(0.99 / 3, abs=1e-6)
    assert calibration_error(confidence[1:], right[1:], bins=2) == pytest.approx(0.99 / 2, abs=1e-6)


def test_a_calibrated_reward_has_no_calibration_error() -> None:
    """Fails when confidence is the margin itself, or that of the chosen response where it loses."""
    generator = torch.Generator().manual_seed(0)
    margin = torch.randn(100_000, generator=generator) * 2
    first = torch.rand(len(margin), generator=generator) < margin.sigmoid()
    statistics = preference_statistics(torch.where(first, margin, -margin), torch.zeros(len(margin)))
    assert statistics["calibration_error"] < 0.01
    overconfident = preference_statistics(torch.where(first, 5 * margin, -5 * margin), torch.zeros(len(margin)))
    assert overconfident["calibration_error"] > 0.1


def test_length_correlations() -> None:
    correlations = length_statistics(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2, 3]))
    assert correlations["length_spearman"] == pytest.approx(1.0, abs=1e-5)
    assert correlations["length_pearson"] == pytest.approx(3 / math.sqrt(2 * 14 / 3), rel=1e-6)
    assert math.isnan(length_statistics(torch.ones(3), torch.tensor([1, 2, 3]))["length_pearson"])


def test_spread() -> None:
    assert reward_statistics(torch.tensor([1.0, 3.0])) == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
