"""Selectors at the edges of what a round can be: nothing to compare, ties, defaults, cut-off winners."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import rlhf_lightning.selection as selection
from rlhf_lightning.selection import least_samples
from tests.helpers.selection_inputs import SampleRound, groups, run
from tests.selection.test_golden import NAMES

X = math.nan
#: No sample has a score.
UNSCORED = SampleRound(score=[[X, X, X]], length=[[10.0, 20.0, 30.0]])
#: Each of the first three beats the next one, and all beat the fourth.
CIRCLE = SampleRound(
    score=[[0.0] * 4],
    preference=[[[0.5, 0.9, 0.1, 0.8], [0.1, 0.5, 0.9, 0.8], [0.9, 0.1, 0.5, 0.8], [0.2, 0.2, 0.2, 0.5]]],
)


def test_least_samples_of_a_prompt() -> None:
    """One is enough where samples are not compared with each other."""
    single = {"best_of_n", "threshold", "data_vs_policy"}
    for name in NAMES:
        assert least_samples(getattr(selection, name)) == (1 if name in single else 2), name


def test_nothing_scored_counts_as_zero() -> None:
    calibrated = run("length_calibrated", UNSCORED).metrics
    assert calibrated["length_correlation"] == calibrated["length_correlation_before"] == 0.0
    assert calibrated["alpha"] == calibrated["length_gap"] == 0.0
    assert run("threshold", UNSCORED, quantile=0.5).metrics["threshold"] == 0.0


def test_lengths_that_do_not_vary_correlate_with_nothing() -> None:
    alike = SampleRound(score=[[1.0, 2.0, 4.0]], length=[[7.0, 7.0, 7.0]])
    assert run("length_calibrated", alike).metrics["length_correlation"] == 0.0


def test_the_price_of_length_is_searched_up_to_one() -> None:
    """The first prompt turns at 2 a token, beyond what is searched by default."""
    steep = SampleRound(score=[[0.0, 2.0], [0.0, 9.0]], length=[[1.0, 2.0], [1.0, 2.0]])
    assert run("length_calibrated", steep).metrics["alpha"] == 0.0
    assert run("length_calibrated", steep, largest=3.0).metrics["alpha"] == pytest.approx(2.0)


def test_a_quantile_of_one_score_is_that_score() -> None:
    selected = run("threshold", SampleRound(score=[[X, 3.0, X]]), quantile=0.5, undesirable="keep")
    assert selected.metrics["threshold"] == 3.0
    assert groups(selected) == [(0, (1,), {"desirable": [0.0]})]


def test_a_coin_sees_no_ties() -> None:
    assert run("random_pair", SampleRound(score=[[1.0, 1.0]]), label="random").metrics["tie_rate"] == 0.0


@pytest.mark.parametrize(("scores", "worst"), [([1.0, -2.0, -1.5, -2.0, -1.5], 3), ([-0.5, -0.5, 0.0, -0.5, 0.5], 3)])
def test_equal_samples_tie_whatever_the_order_of_their_sums(scores: list[float], worst: int) -> None:
    """Samples with one score: the last of them loses, although its mean was rounded to a larger number."""
    selected = run("win_probability", SampleRound(score=[scores]), judge="scores", include_self=False)
    assert groups(selected)[0][1][1] == worst


def test_share_of_circles() -> None:
    """One of the four triples; the three with the fourth sample are in order. Two samples make no triple."""
    assert run("win_probability", CIRCLE).metrics["intransitive"] == pytest.approx(1 / 4)
    two = SampleRound(score=[[0.0, 0.0]], preference=[[[0.5, 0.9], [0.1, 0.5]]])
    assert run("win_probability", two).metrics["intransitive"] == 0.0


@pytest.mark.parametrize("wrong", [1.5, -0.5])
def test_a_preference_is_a_probability(wrong: float) -> None:
    matrix = torch.tensor([[[0.5, wrong], [0.5, 0.5]]])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        selection.win_probability(torch.zeros(1, 2, dtype=torch.bool), matrix)


def test_ties_of_a_ranking() -> None:
    """Scores 1, 1, 0: one of three pairs, and one of two neighbours."""
    scores = SampleRound(score=[[1.0, 1.0, 0.0]])
    assert run("all_pairs", scores).metrics["tie_rate"] == pytest.approx(1 / 3)
    assert run("adjacent_pairs", scores).metrics["tie_rate"] == pytest.approx(1 / 2)


def test_eight_of_a_prompts_samples_are_drawn() -> None:
    """The default of the paper: 8, in 4 pairs."""
    scores = SampleRound(score=[[0.01 * sample for sample in range(40)]])
    assert len(run("rejection_sampling", scores, beta=10.0)) == 4


def test_a_cut_off_sample_does_not_advance_in_a_tournament() -> None:
    """The best sample of four is cut off: it loses its first pair and plays no other, in any order."""
    scores = SampleRound(score=[[0.0, 1.0, 2.0, 3.0]], truncated=[[False, False, False, True]])
    for seed in range(8):
        rule = {"n": 4, "beta": 100.0, "pairing": "tournament", "cut_off": "lose"}
        pairs = groups(run("rejection_sampling", replace(scores, seed=seed), **rule))
        final = [slots for _, slots, _ in pairs][-1]
        assert 3 not in final
        assert len(pairs) == 2  # the pair with the cut-off sample has a better loser, and is none


def test_a_kept_cut_off_sample_wins_a_tournament() -> None:
    """The same with ``keep``: it beats whoever it meets."""
    scores = SampleRound(score=[[0.0, 1.0, 2.0, 3.0]], truncated=[[False, False, False, True]])
    for seed in range(4):
        rule = {"n": 4, "beta": 100.0, "pairing": "tournament", "cut_off": "keep"}
        pairs = groups(run("rejection_sampling", replace(scores, seed=seed), **rule))
        assert len(pairs) == 3
        assert pairs[-1][1][0] == 3


@pytest.mark.parametrize("name", ["best_of_n", "length_calibrated"])
def test_cut_off_samples_that_count_or_not(name: str) -> None:
    """A response that is trained on alone cannot lose, nor can one whose length has a price that hangs on who wins."""
    with pytest.raises(ValueError, match="cut_off"):
        run(name, SampleRound(score=[[1.0, 2.0]]), cut_off="lose")


def test_the_best_sample_wins_a_tournament() -> None:
    """Sample 0 is the best of four: in whatever order they meet, it wins the last pair."""
    scores = SampleRound(score=[[3.0, 1.0, 2.0, 0.0]])
    for seed in range(8):
        pairs = groups(run("rejection_sampling", replace(scores, seed=seed), n=4, beta=100.0, pairing="tournament"))
        assert [slots for _, slots, _ in pairs][-1][0] == 0
        assert len(pairs) == 3


def test_ties_of_what_was_drawn() -> None:
    rule = {"n": 2, "beta": 100.0}
    assert run("rejection_sampling", SampleRound(score=[[1.0, 1.0]]), **rule).metrics["tie_rate"] == 1.0
    assert run("rejection_sampling", SampleRound(score=[[1.0, 2.0]]), **rule).metrics["tie_rate"] == 0.0


@pytest.mark.parametrize("samples", [UNSCORED, UNSCORED.first(0)])
def test_nothing_to_draw_from_counts_as_zero(samples: SampleRound) -> None:
    metrics = run("rejection_sampling", samples).metrics
    for name in ("sweeps", "acceptance_rate", "pool_score", "drawn_score", "target_kl", "tie_rate"):
        assert metrics[name] == 0.0, name
