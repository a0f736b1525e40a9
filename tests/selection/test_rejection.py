"""RSO's samplers against the distributions that they are meant to have."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from rlhf_lightning.selection.rejection import _exact, _swept
from rlhf_lightning.selection.terms import PromptStreams
from rlhf_lightning.types import NONE
from tests.helpers.selection_inputs import SampleRound, groups, run

MANY = 8_000
#: Upper .001 quantile of chi-square with 1 and 2 degrees of freedom.
CHI_SQUARE = {1: 10.83, 2: 13.82}


def shares(sampler: str, scores: list[float], n: int = 1) -> tuple[list[int], torch.Tensor]:
    """Share of draws in which each sample is the first one, and all draws, of many equal prompts."""
    score = torch.tensor([scores], dtype=torch.float64).expand(MANY, -1)
    streams = PromptStreams(torch.Generator().manual_seed(0), MANY)
    members = torch.ones_like(score, dtype=torch.bool)
    drawn = (
        _exact(score, members, n, 0.5, streams) if sampler == "exact" else _swept(score, members, n, 0.5, streams)[0]
    )
    counted = Counter(drawn[:, 0].tolist())
    return [counted[i] for i in range(len(scores))], drawn


def chi_square(counts: list[int], probabilities: list[float]) -> float:
    return sum((c - MANY * p) ** 2 / (MANY * p) for c, p in zip(counts, probabilities, strict=True))


@pytest.mark.parametrize(
    ("sampler", "scores", "probabilities"),
    [
        ("exact", [0.0, -1.0, -2.0], [0.866813, 0.117310, 0.015877]),
        ("sweep", [0.0, -1.0, -2.0], [0.924001, 0.067255, 0.008744]),
        ("exact", [0.0, -1.0], [0.880797, 0.119203]),
        ("sweep", [0.0, -1.0], [0.932332, 0.067668]),
    ],
)
def test_distribution_of_the_first_draw(sampler: str, scores: list[float], probabilities: list[float]) -> None:
    """Hand-worked: softmax(s / beta), and a sweep in random order that stops at its first acceptance."""
    counts, _ = shares(sampler, scores)
    assert chi_square(counts, probabilities) < CHI_SQUARE[len(scores) - 1]
    other = {"exact": "sweep", "sweep": "exact"}[sampler]  # the test can tell them apart
    assert chi_square(shares(other, scores)[0], probabilities) > 2 * CHI_SQUARE[len(scores) - 1]


def test_the_order_of_samples_does_not_matter() -> None:
    """A sweep in the order of the samples accepts -1 with .135 where it comes first and never where it is last."""
    for scores, probabilities in (([0.0, -1.0], [0.932332, 0.067668]), ([-1.0, 0.0], [0.067668, 0.932332])):
        assert chi_square(shares("sweep", scores)[0], probabilities) < CHI_SQUARE[1]


def test_every_exact_draw_has_the_distribution() -> None:
    _, drawn = shares("exact", [0.0, -1.0], n=4)
    for column in drawn.unbind(1):
        assert (column == 1).double().mean() == pytest.approx(0.119203, abs=0.01)
    assert (drawn[:, 0] == drawn[:, 1]).double().mean() == pytest.approx(0.880797**2 + 0.119203**2, abs=0.01)


def test_a_sweep_takes_no_sample_twice_and_all_there_are() -> None:
    _, drawn = shares("sweep", [0.0, -1.0, -2.0], n=5)
    assert (drawn[:, 3:] == NONE).all()
    assert (drawn[:, :3].sort(1).values == torch.arange(3)).all()


def test_limits_of_beta() -> None:
    """Nearly 0: the best n; infinite: any n."""
    samples = SampleRound([[float(i) for i in range(6)]] * 200)
    best = run("rejection_sampling", samples, n=4, beta=1e-4)
    assert set(best.slots.flatten().tolist()) == {2, 3, 4, 5}
    assert run("rejection_sampling", samples, n=4, beta=0.0).metrics["drawn_score"] == 3.5
    uniform = run("rejection_sampling", samples, n=4, beta=1e9)
    assert uniform.metrics["acceptance_rate"] == pytest.approx(1)
    assert uniform.metrics["drawn_score"] == pytest.approx(2.5, abs=0.15)
    assert uniform.metrics["sweeps"] == 1
    assert uniform.metrics["target_kl"] == pytest.approx(0, abs=1e-9)


def test_pairs_and_matches() -> None:
    """8 samples: 4 pairs, or 7 matches whose best one wins 3."""
    samples = SampleRound([[float(i) for i in range(8)]] * 50)
    first = run("rejection_sampling", samples, pairing="first_round")
    assert len(first) == 4 * 50
    assert (first.slots.view(50, 8).sort(1).values == torch.arange(8)).all()
    matches = run("rejection_sampling", samples, pairing="tournament")
    assert len(matches) == 7 * 50
    assert ((matches.slots[:, 0] == 7).view(50, 7).sum(1) == 3).all()
    assert (matches.slots[:, 1].view(50, 7).sort(1).values == torch.arange(7)).all()  # everyone else loses once


def test_seeds_and_prompts() -> None:
    samples = SampleRound([[float(i) for i in range(8)]] * 6)
    slots = run("rejection_sampling", samples).slots
    assert len({tuple(row.tolist()) for row in slots.view(6, 8)}) == 6  # prompts draw other numbers
    samples.seed = 1
    assert not torch.equal(run("rejection_sampling", samples).slots, slots)


def test_statistics_of_two_prompts() -> None:
    """Acceptance is over samples, the KL over prompts; a prompt without scores is in neither."""
    samples = SampleRound([[0.0, -1.0], [0.0, 0.0], [math.nan, math.nan]])
    metrics = run("rejection_sampling", samples, n=2).metrics
    assert metrics["acceptance_rate"] == pytest.approx((1 + math.exp(-2) + 2) / 4)
    p = 1 / (1 + math.exp(-2))
    kl = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert metrics["target_kl"] == pytest.approx(kl / 2)
    assert metrics["pool_score"] == metrics["drawn_score"] == -0.25
    assert metrics["left_out"] == 1
    nothing = run("rejection_sampling", SampleRound([[math.nan, math.nan]])).metrics
    assert nothing["acceptance_rate"] == nothing["pool_score"] == nothing["sweeps"] == 0


def test_pairs_of_a_prompt_do_not_depend_on_the_sweeps_of_another() -> None:
    """The second prompt needs more sweeps than the first; keys of pairs that come after those would differ."""
    both = SampleRound(score=[[0.0, 0.1, 0.2, 0.3], [0.0, -1.0, -1.2, -1.1]])
    for seed in range(20):
        together = replace(both, seed=seed)
        rule = {"n": 4, "beta": 0.3}
        whole = [group for group in groups(run("rejection_sampling", together, **rule)) if group[0] == 0]
        assert groups(run("rejection_sampling", together.first(1), **rule)) == whole
