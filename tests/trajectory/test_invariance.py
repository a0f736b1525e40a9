"""Micro-batches of a step, and the number of processes, change neither losses nor weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.callbacks import ImplicitRewards, LogRatios, NonFiniteStop, ResponseStatistics
from rlhf_lightning.cli.reference import fill_reference_cache
from rlhf_lightning.methods import Preference, Supervised
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import in_processes, trajectory
from tests.helpers.training import Builder

SGD = partial(torch.optim.SGD, lr=0.05)  # Adam divides tiny gradients by their size, and rounding with them

METHODS: dict[str, Callable[[], L.LightningModule]] = {
    "dpo": lambda: Preference(Builder(), partial(losses.dpo, beta=0.3), SGD),
    # the mean over tokens of the step, which a mean of means is not
    "rpo": lambda: Preference(Builder(), partial(losses.rpo, beta=0.3, nll_weight=1.0), SGD),
    # the first step sees no moments, the others those of whole steps
    "alpha_dpo": lambda: Preference(Builder(), partial(losses.alpha_dpo, beta=1.0), SGD, running_decay=0.5),
    "bco_pair": lambda: Preference(Builder(), partial(losses.bco_pair, beta=0.3), SGD),
    "sft": lambda: Supervised(Builder("none"), losses.sft, SGD),
}


def tiny(reference: str = "frozen", adapter: Lora | None = None) -> Preference:
    builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), adapter, reference)
    return Preference(builder, partial(losses.dpo, beta=0.3), SGD)


def metrics() -> tuple[L.Callback, ...]:
    return ImplicitRewards(), ResponseStatistics(), LogRatios(), NonFiniteStop()


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 2e-5, steps: int = 6) -> None:
    """Every logged metric at every step, and every weight."""
    assert one["metrics"].keys() == other["metrics"].keys()
    assert len(one["metrics"]["train/loss"]) == steps
    for name, values in one["metrics"].items():
        metric = torch.tensor(other["metrics"][name])
        limits = {"atol": tolerance, "rtol": tolerance}
        torch.testing.assert_close(
            metric, torch.tensor(values), msg=lambda text, name=name: f"{name}: {text}", **limits
        )
    for name, weight in one["weights"].items():
        torch.testing.assert_close(weight, other["weights"][name], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_8x1_is_4x2_is_two_processes(tmp_path, method):
    """Fails when a denominator is that of the micro-batch, or a statistic that of the process."""
    whole = trajectory(METHODS[method], tmp_path / "8x1", metrics())
    moved = trajectory(METHODS[method], tmp_path / "0", metrics(), max_steps=1)["weights"]
    assert any(not torch.equal(weight, moved[name]) for name, weight in whole["weights"].items())
    accumulated = trajectory(METHODS[method], tmp_path / "4x2", metrics(), accumulate_grad_batches=2)
    assert_same(whole, accumulated)
    folder = tmp_path / "2 processes"
    parallel = in_processes(
        2, folder, trajectory, METHODS[method], folder, metrics(), devices=2, strategy="ddp", accumulate_grad_batches=2
    )
    assert_same(whole, parallel)


def test_frozen_is_adapter_off_is_cached(tmp_path, monkeypatch):
    """Fails when the adapter stays on, the reference follows the policy, or rows are mixed up in the store."""
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    lora = Lora(r=2, alpha=16, seed=5)
    frozen = trajectory(lambda: tiny("frozen", lora), tmp_path / "frozen", metrics())
    off = trajectory(lambda: tiny("adapter_off", lora), tmp_path / "off", metrics())
    assert frozen["metrics"]["train/loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert max(abs(margin) for margin in frozen["metrics"]["train/reward/margin"]) > 1e-3
    assert_same(frozen, off)
    cached = trajectory(lambda: tiny("cached", lora), tmp_path / "cached", metrics(), before=fill_reference_cache)
    assert_same(frozen, cached)


@pytest.mark.parametrize(
    "adapter",
    [pytest.param(None, id="full", marks=pytest.mark.slow), pytest.param(Lora(r=2, alpha=16, seed=5), id="lora")],
)
def test_single_is_fsdp(tmp_path, adapter):
    """Two processes, each with half of every weight, and two accumulated micro-batches."""
    single = trajectory(lambda: tiny("frozen", adapter), tmp_path / "single", metrics())
    folder = tmp_path / "fsdp"
    sharded = in_processes(
        2,
        folder,
        trajectory,
        lambda: tiny("frozen", adapter),
        folder,
        metrics(),
        devices=2,
        strategy=FSDP2Strategy,
        accumulate_grad_batches=2,
        gradient_clip_val=1e3,
    )
    assert_same(single, sharded)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("bf16-mixed", 0.03), ("bf16-true", 0.05)])
@pytest.mark.parametrize("strategy", ["ddp", FSDP2Strategy], ids=["ddp", "fsdp"])
def test_precision_in_two_processes(tmp_path, precision, tolerance, strategy):
    """Step 0 has the loss ln 2 whatever the precision: policy and reference are computed alike."""
    single = trajectory(tiny, tmp_path / "single", metrics())
    folder = tmp_path / "parallel"
    run = in_processes(
        2, folder, trajectory, tiny, folder, metrics(), devices=2, strategy=strategy, precision=precision
    )
    assert run["metrics"]["train/loss"][0] == pytest.approx(math.log(2), abs=1e-6)
    losses, expected = run["metrics"]["train/loss"], single["metrics"]["train/loss"]
    assert losses == pytest.approx(expected, abs=tolerance)
    assert losses[1:] != expected[1:] or precision == "32-true"
