"""Labelled responses and ranked lists: how a step is cut, and over how many processes, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.callbacks import ImplicitRewards, LogRatios, NonFiniteStop, ResponseStatistics
from rlhf_lightning.cli.reference import fill_reference_cache
from rlhf_lightning.methods import Ranked, Unpaired
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import in_processes, trajectory
from tests.helpers.training import Builder
from tests.trajectory.test_invariance import SGD, assert_same

METHODS: dict[str, Callable[[], L.LightningModule]] = {
    # one reference point for the whole step, from all of its rows
    "kto": lambda: Unpaired(Builder(), partial(losses.kto, beta=0.3, undesirable_weight=2.0), SGD),
    # the running mean of the rewards of whole steps
    "bco": lambda: Unpaired(Builder(), partial(losses.bco, beta=0.3), SGD),
    # a token mean over responses of both labels
    "unlikelihood": lambda: Unpaired(Builder("none"), losses.unlikelihood, SGD),
    # lists of different lengths
    "plackett_luce": lambda: Ranked(Builder(), partial(losses.plackett_luce, beta=0.3), SGD),
    "reward_weighted": lambda: Ranked(Builder("none"), partial(losses.reward_weighted, normalise="running"), SGD),
}


def metrics() -> tuple[L.Callback, ...]:
    return ImplicitRewards(), ResponseStatistics(), LogRatios(), NonFiniteStop()


@pytest.mark.parametrize("method", METHODS)
def test_8x1_is_4x2_is_two_processes(tmp_path, method):
    """Fails when a reference point, a denominator or a statistic is that of the micro-batch or of the process."""
    whole = trajectory(METHODS[method], tmp_path / "8x1", metrics())
    assert_same(whole, trajectory(METHODS[method], tmp_path / "4x2", metrics(), accumulate_grad_batches=2))
    assert_same(whole, trajectory(METHODS[method], tmp_path / "2x4", metrics(), accumulate_grad_batches=4))
    folder = tmp_path / "2 processes"
    parallel = in_processes(
        2, folder, trajectory, METHODS[method], folder, metrics(), devices=2, strategy="ddp", accumulate_grad_batches=2
    )
    assert_same(whole, parallel)


def tiny(reference: str, adapter: Lora | None = None) -> Unpaired:
    builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), adapter, reference)
    return Unpaired(builder, partial(losses.kto, beta=0.3), SGD)


def settled(run: dict[str, Any]) -> dict[str, Any]:
    """At step 0 the rewards are rounding errors, and so are their signs."""
    run["metrics"]["train/reward/accuracy"][0] = 0.0
    return run


def test_kto_with_every_reference(tmp_path, monkeypatch):
    """The store has mismatched rows too; fails when they are taken for the data's rows, or the adapter stays on."""
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    lora = Lora(r=2, alpha=16, seed=5)
    frozen = settled(trajectory(lambda: tiny("frozen", lora), tmp_path / "frozen", metrics()))
    assert frozen["metrics"]["train/loss"][0] == pytest.approx(0.5, abs=1e-6)
    assert frozen["metrics"]["train/log_ratio/mismatched"][0] == pytest.approx(0.0, abs=1e-6)
    assert torch.tensor(frozen["metrics"]["train/log_ratio/mismatched"]).max() > 1e-4, "the clamp hides the estimate"
    off = trajectory(lambda: tiny("adapter_off", lora), tmp_path / "off", metrics())
    assert_same(frozen, settled(off))
    cached = trajectory(lambda: tiny("cached", lora), tmp_path / "cached", metrics(), before=fill_reference_cache)
    assert_same(frozen, settled(cached))


@pytest.mark.slow
def test_kto_single_is_fsdp(tmp_path):
    """The reference point needs forward passes of its own before the step's first one, on shards as well."""
    single = settled(trajectory(lambda: tiny("frozen"), tmp_path / "single", metrics()))
    folder = tmp_path / "fsdp"
    sharded = in_processes(
        2,
        folder,
        trajectory,
        lambda: tiny("frozen"),
        folder,
        metrics(),
        devices=2,
        strategy=FSDP2Strategy,
        accumulate_grad_batches=2,
        gradient_clip_val=1e3,
    )
    assert_same(single, settled(sharded))
