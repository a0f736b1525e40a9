"""What papers claim of rounds, as far as it shows in the tiny world, with three seeds; docs/rounds.md has the rest.

The gold reward of one run has a standard error of 0.09 points, the mean of three about 0.05.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from rlhf_lightning import compose, train
from rlhf_lightning.cli.results import Result
from rlhf_lightning.world import TinyEvaluator
from tests.learning.harness import GOLD

pytestmark = pytest.mark.slow
SEEDS = (1, 2, 3)
LABELS = ("reward=gold_labels", "data.source.error=1.0")
COMMON = ("experiment=tiny", "data.source.size=512", "scheduler=constant", "ckpt_path=null")


def golds(folder: Path, *options: str) -> list[float]:
    """Gold reward at the end of a run with each seed; its metrics are in ``folder/<seed>``."""
    found = []
    for seed in SEEDS:
        train(compose("train", [*COMMON, *options, f"seed={seed}", f"paths.output_dir={folder / str(seed)}"]))
        result = Result.read(folder / str(seed))
        assert result is not None
        found.append(result.metrics[GOLD])
    return found


def column(folder: Path, name: str) -> list[float]:
    """Every value of a metric that a run logged."""
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def draws(source: str, n: int, temperature: float = 1.0) -> str:
    return f"rounds.draws=[{{source: {source}, n: {n}, temperature: {temperature}}}]"


def assert_rises(few: Sequence[float], many: Sequence[float], margin: float) -> None:
    assert fmean(many) - fmean(few) > margin, f"{few} and {many}"


def test_raft_rises_with_the_samples_of_a_prompt(tmp_path):
    """The best of eight teaches more than the best of two."""
    raft = ["method=sft", "rounds=raft", "rounds.inner_epochs=1", *LABELS]
    few, many = (golds(tmp_path / str(n), *raft, draws("policy", n, 0.85)) for n in (2, 8))
    assert_rises(few, many, 0.2)


def test_rso_rises_with_the_pool_that_it_draws_from(tmp_path):
    """Of a pool of four all are taken, which is the policy itself; of sixteen those of the optimal policy."""
    rso = ["method=rso_sigmoid", "rounds=rso", "data.source.size=256", *LABELS]
    few, many = (golds(tmp_path / str(n), *rso, draws("reference", n)) for n in (4, 16))
    assert_rises(few, many, 0.2)


def test_spin_gains_from_demonstrations_alone_and_its_margin_goes_to_0(tmp_path):
    """No reward is asked. As the policy comes to write as the data does, a round's steps tell the two apart less."""
    found = golds(tmp_path, "method=spin", "rounds=spin", "data.source.size=1536", "optimizer.lr=3e-4")
    assert min(found) > TinyEvaluator().base_reward() + 0.5
    margins = [column(tmp_path / str(seed), "train/reward/margin")[7::8] for seed in SEEDS]  # of each round's last step
    first, last = (fmean(run[at] for run in margins) for at in (0, -1))
    assert last < first / 2
