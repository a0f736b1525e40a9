"""DICE's price on length: it recovers what a score pays for length, and stops where it should."""

from __future__ import annotations

import torch

from rlhf_lightning.selection import length_calibrated
from tests.helpers.selection_inputs import SampleRound, groups, run


def mirrored(price: float, pairs: int = 20) -> SampleRound:
    """Quality and length are independent: whatever has one length in a prompt has the other in the next one."""
    generator = torch.Generator().manual_seed(0)
    quality = torch.randn(pairs, 4, generator=generator, dtype=torch.float64)
    length = torch.randint(10, 200, (pairs, 4), generator=generator).double()
    length, quality = torch.cat([length, length.flip(1)]), torch.cat([quality, quality])
    # q ranks a pair of prompts the same way, with lengths that are mirrored around their mean
    length[pairs:] = length[:pairs].amin(1, keepdim=True) + length[:pairs].amax(1, keepdim=True) - length[:pairs]
    return SampleRound((quality + price * length).tolist(), length.tolist())


def test_the_price_that_a_score_pays_for_length_is_recovered() -> None:
    """At alpha = k the calibrated score is the quality alone, whose mean gap of mirrored prompts is exactly 0."""
    for price in (0.0, 0.05, 0.123):
        metrics = run("length_calibrated", mirrored(price)).metrics
        assert abs(metrics["alpha"] - price) <= 0.005
        assert abs(metrics["length_gap"]) <= 3
        assert abs(metrics["length_correlation"]) < 0.1
        if price:
            assert metrics["length_gap_before"] > 50
            assert metrics["length_correlation_before"] > 0.8


def test_chosen_responses_end_as_long_as_rejected_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    length = torch.randint(10, 400, (2000, 8), generator=generator).double()
    score = torch.randn(2000, 8, generator=generator).double() + 0.02 * length
    selected = length_calibrated(score, length, torch.zeros(2000, 8, dtype=torch.bool))
    row, (chosen, rejected) = selected.prompt, selected.slots.unbind(1)
    gap = (length[row, chosen] - length[row, rejected]).mean()
    assert abs(gap) < 0.05 * length.mean()
    assert selected.metrics["length_gap"] == gap


def test_a_plateau_does_not_end_the_search() -> None:
    """One prompt: the gap stays 50 until alpha .5 (50 of length for 25 of score), where it turns into -50.

    A later gap of equal size is no reason to continue to it, and an equal one on the way is none to stop.
    """
    one = SampleRound([[25.0, 0.0]], [[100.0, 50.0]])
    assert run("length_calibrated", one, step=0.1).metrics["alpha"] == 0.0
    two = SampleRound([[25.0, 0.0], [0.0, 1.0]], [[100.0, 50.0], [60.0, 80.0]])
    # gaps: +50 +20 until .05, then +50 -20 until .5, then -50 -20
    metrics = run("length_calibrated", two, step=0.02).metrics
    assert metrics["alpha"] == 0.06
    assert metrics["length_gap"] == 15


def test_the_end_of_the_grid_is_part_of_it() -> None:
    """Gap +20 turns at .05; a grid to .04 ends before it, one to .06 (3 steps of .02) reaches it."""
    samples = SampleRound([[0.0, 1.0], [0.0, 9.0]], [[60.0, 80.0], [80.0, 60.0]])
    by_largest = {
        largest: run("length_calibrated", samples, step=0.02, largest=largest).metrics for largest in (0.04, 0.06)
    }
    assert by_largest[0.04]["length_gap"] == 0
    assert by_largest[0.06]["alpha"] == 0
    steep = SampleRound([[0.0, 1.0], [0.0, 9.0]], [[60.0, 80.0], [60.0, 70.0]])
    by_largest = {
        largest: run("length_calibrated", steep, step=0.02, largest=largest).metrics for largest in (0.04, 0.06)
    }
    assert (by_largest[0.04]["alpha"], by_largest[0.04]["length_gap"]) == (0.0, 15)
    assert (by_largest[0.06]["alpha"], by_largest[0.06]["length_gap"]) == (0.06, -5)


def test_groups_are_those_of_the_price_that_was_found() -> None:
    samples = mirrored(0.05)
    searched = run("length_calibrated", samples)
    fixed = run("length_calibrated", samples, alpha=searched.metrics["alpha"])
    assert groups(searched) == groups(fixed)
