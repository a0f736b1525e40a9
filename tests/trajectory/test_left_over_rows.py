"""41 rows at batch 8 are six steps however a step is cut: the last one has a row, and micro-batches without any."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from rlhf_lightning import losses
from rlhf_lightning.callbacks import (
    ImplicitRewards,
    LogRatios,
    NonFiniteStop,
    ResponseStatistics,
    ScoreNormalizer,
    Throughput,
)
from rlhf_lightning.methods import Contrastive, Preference, RewardModel, Supervised, Unpaired
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import in_processes, ranks, trajectory
from tests.helpers.training import Builder
from tests.trajectory.test_invariance import SGD, assert_same, tiny
from tests.trajectory.test_reward import reward

ROWS, STEPS = 41, 12


def coin(in_batch: bool) -> L.LightningModule:
    builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), None, "none")
    return Contrastive(builder, partial(losses.coin, weight=0.5, temperature=0.5, in_batch=in_batch), SGD)


METHODS: dict[str, Callable[[], L.LightningModule]] = {
    "dpo": lambda: Preference(Builder(), partial(losses.dpo, beta=0.3), SGD),
    # a mean over the tokens of the step, and moments of what whole steps observed
    "rpo": lambda: Preference(Builder(), partial(losses.rpo, beta=0.3, nll_weight=1.0), SGD),
    "bco_pair": lambda: Preference(Builder(), partial(losses.bco_pair, beta=0.3), SGD),
    # mismatched rows of the whole step come with a first micro-batch that may be empty
    "kto": lambda: Unpaired(Builder(), partial(losses.kto, beta=0.3, undesirable_weight=2.0), SGD),
    # with negatives of its own group only; else it looks at the whole step at once, which a run may not cut then
    "coin": lambda: coin(in_batch=False),
    "sft": lambda: Supervised(Builder("none"), losses.sft, SGD),
    "reward model": lambda: reward(RewardModel, partial(losses.bradley_terry, centering=0.1)),
}


def metrics() -> tuple[L.Callback, ...]:
    return ImplicitRewards(), ResponseStatistics(), LogRatios(), NonFiniteStop(), ScoreNormalizer()


def run(make: Callable[[], L.LightningModule], folder: Path, **options: Any) -> dict[str, Any]:
    return trajectory(make, folder, metrics(), groups=ROWS, **options)


def parallel(make: Callable[[], L.LightningModule], folder: Path, **options: Any) -> dict[str, Any]:
    return in_processes(2, folder, run, make, folder, devices=2, **options)


QUICK = ("dpo", "kto")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
def test_8x1_is_4x2_is_two_processes(tmp_path, method):
    """Fails when left-over rows join other steps, or a micro-batch without rows has a part in a sum or a mean."""
    make = METHODS[method]
    whole = run(make, tmp_path / "8x1")
    assert_same(whole, run(make, tmp_path / "4x2", accumulate_grad_batches=2), steps=STEPS)
    assert_same(whole, parallel(make, tmp_path / "2", strategy="ddp"), steps=STEPS)
    assert_same(whole, parallel(make, tmp_path / "2x2", strategy="ddp", accumulate_grad_batches=2), steps=STEPS)


def test_coin_with_all_negatives_refuses_to_be_cut(tmp_path):
    """Before any weight loads, under any way to cut a step; else its negatives would be those of a micro-batch."""
    make = partial(coin, True)
    assert len(run(make, tmp_path / "8x1")["metrics"]["train/loss"]) == STEPS
    with pytest.raises(ValueError, match=r"loss coin contrasts .* into 2 micro-batches.*in_batch=false"):
        run(make, tmp_path / "4x2", accumulate_grad_batches=2)
    assert ranks(2, run, make, tmp_path / "2", devices=2, strategy="ddp") == [1, 1]


@pytest.mark.slow
def test_single_is_fsdp(tmp_path):
    """Sharded weights are gathered for a micro-batch without rows as for any other."""
    single = run(tiny, tmp_path / "single")
    options = {"strategy": FSDP2Strategy, "gradient_clip_val": 1e3}
    assert_same(single, parallel(tiny, tmp_path / "2", **options), steps=STEPS)
    assert_same(single, parallel(tiny, tmp_path / "2x2", accumulate_grad_batches=2, **options), steps=STEPS)


def test_fewer_rows_than_micro_batches(tmp_path):
    """Three rows in two processes of two micro-batches, in training and validation."""
    single = trajectory(METHODS["dpo"], tmp_path / "single", metrics(), groups=3)
    options = {"groups": 3, "devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2}
    two = in_processes(2, tmp_path / "2", trajectory, METHODS["dpo"], tmp_path / "2", metrics(), **options)
    assert_same(single, two, steps=2)


def test_a_process_without_rows_reports_its_throughput(tmp_path):
    """One row in two processes, one of which computes no token that counts."""
    callbacks = (*metrics(), Throughput())
    two = in_processes(
        2, tmp_path, trajectory, METHODS["dpo"], tmp_path, callbacks, groups=1, devices=2, strategy="ddp"
    )
    assert two["metrics"]["train/throughput/padding"] == [0.0, 0.0]
