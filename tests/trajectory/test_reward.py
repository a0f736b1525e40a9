"""Reward models: neither the cut of a step, nor the number of processes, nor a kill changes what is learned."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning import losses
from rlhf_lightning.callbacks import ImplicitRewards, LastCheckpoint, ScoreNormalizer, StepSeed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.methods import CostModel, RankedRewardModel, RewardModel
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import data, in_processes, trajectory
from tests.helpers.training import trainer
from tests.trajectory.test_invariance import SGD, assert_same


def reward(
    kind: Any, loss: Callable[..., Any], adapter: Lora | None = None, normalize: Any = "standard", **head: Any
) -> L.LightningModule:
    builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), adapter, "none")
    return kind(builder, loss, SGD, head=partial(Scorer, seed=2, **head), normalize=normalize)


METHODS: dict[str, Callable[[], L.LightningModule]] = {
    # the likelihood term is a mean over the tokens of the step
    "bradley_terry": lambda: reward(
        RewardModel, partial(losses.bradley_terry, margin_scale=0.3, centering=0.1, lm_weight=0.2)
    ),
    "token_wise": lambda: reward(RewardModel, losses.token_wise),
    "k_wise": lambda: reward(RankedRewardModel, losses.k_wise),
    "best_of_k": lambda: reward(RankedRewardModel, losses.best_of_k, bias=True),
    "cost": lambda: reward(CostModel, losses.cost, normalize="scale", bias=True),
}


def callbacks() -> tuple[L.Callback, ...]:
    return ImplicitRewards(), ScoreNormalizer()


@pytest.mark.parametrize("method", METHODS)
def test_8x1_is_4x2_is_two_processes(tmp_path, method):
    """Fails when a denominator is that of the micro-batch, or an extreme or a correlation that of the process."""
    whole = trajectory(METHODS[method], tmp_path / "8x1", callbacks())
    for name in ("mean", "std", "min", "max", "length_correlation", "accuracy"):
        assert len(whole["metrics"][f"train/reward/{name}"]) == 6
    accumulated = trajectory(METHODS[method], tmp_path / "4x2", callbacks(), accumulate_grad_batches=2)
    assert_same(whole, accumulated)
    folder = tmp_path / "2 processes"
    parallel = in_processes(
        2,
        folder,
        trajectory,
        METHODS[method],
        folder,
        callbacks(),
        devices=2,
        strategy="ddp",
        accumulate_grad_batches=2,
    )
    assert_same(whole, parallel)


@pytest.mark.parametrize("adapter", [None, Lora(r=2, alpha=16, seed=5)], ids=["full", "lora"])
def test_single_is_fsdp(tmp_path, adapter):
    """Two processes, each with half of every weight, the head among them, and two accumulated micro-batches."""
    make = partial(reward, RewardModel, partial(losses.bradley_terry, centering=0.1), adapter)
    single = trajectory(make, tmp_path / "single", callbacks())
    folder = tmp_path / "fsdp"
    sharded = in_processes(
        2,
        folder,
        trajectory,
        make,
        folder,
        callbacks(),
        devices=2,
        strategy=FSDP2Strategy,
        accumulate_grad_batches=2,
        gradient_clip_val=1e3,
    )
    assert_same(single, sharded)
    assert "head.weight" in sharded["weights"]


def test_odin_in_fsdp(tmp_path):
    """The overlap of the head's rows reads weights beside the forward pass; its gradient must not get lost."""
    make = partial(reward, RewardModel, partial(losses.odin, length_weight=0.0), outputs=2)
    single = trajectory(make, tmp_path / "single", callbacks())
    folder = tmp_path / "fsdp"
    sharded = in_processes(2, folder, trajectory, make, folder, callbacks(), devices=2, strategy=FSDP2Strategy)
    assert sharded["metrics"]["train/loss"] == pytest.approx(single["metrics"]["train/loss"], abs=2e-5)
    for name, weight in single["weights"].items():
        torch.testing.assert_close(sharded["weights"][name], weight, atol=2e-5, rtol=2e-5)


class StopAt(L.Callback):
    """Ends the process's training as a kill would, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def fit(folder, *extra: L.Callback) -> L.LightningModule:
    module = METHODS["bradley_terry"]()
    last = folder / "checkpoints" / "last.ckpt"
    callbacks = [StepSeed(seed=7), ScoreNormalizer(), LastCheckpoint(every_n_steps=2), *extra]
    run = trainer(folder, callbacks, max_epochs=2, plugins=[AtomicCheckpointIO()], use_distributed_sampler=False)
    run.fit(module, datamodule=data("preference", groups=20), ckpt_path=last if last.exists() else None)
    return module


def test_resume_is_exact_and_keeps_the_normalisation(tmp_path):
    whole = fit(tmp_path / "whole")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path / "cut", StopAt(5))
    cut = fit(tmp_path / "cut")
    for (name, one), (_, other) in zip(whole.named_parameters(), cut.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert (cut.policy.mean, cut.policy.std) == (whole.policy.mean, whole.policy.std)
    assert whole.policy.std != 1.0
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["score_normalization"] == {"mean": whole.policy.mean, "std": whole.policy.std}
    loaded = METHODS["bradley_terry"]()
    run = trainer(tmp_path / "again", [], max_epochs=2)
    run.validate(loaded, datamodule=data("preference"), ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert loaded.policy.mean == whole.policy.mean
