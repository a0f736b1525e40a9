"""PolicyGradient under a Trainer: what a step logs, when the rest of a rollout is skipped, what a checkpoint holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from rlhf_lightning import credit
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import KLPenalty, PolicyGradient
from tests.helpers.rollouts import GROUPS, SLOTS, TOKENS, episodes, step
from tests.helpers.training import Builder, trainer


class Seen(Callback):
    """Logged metrics of each optimiser step, and the weights after it."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:  # a module logs a step after its callbacks have seen the step's end
            self.read(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.weights.append(pl_module.policy.head.weight.detach().clone())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.read(trainer)

    def read(self, trainer: L.Trainer) -> None:
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def method(lr: float = 0.5, **options: Any) -> PolicyGradient:
    given = {"advantage": credit.grpo, "rollout": {"group_size": SLOTS, "inner_epochs": 3}} | options
    return PolicyGradient(Builder(), ppo, partial(torch.optim.SGD, lr=lr), **given)


def batches(rollouts: int = 2, inner_epochs: int = 3) -> list[Any]:
    """The same responses in every step; the old log-probs are the policy's before any of them."""
    made = method()
    made.configure_model()
    played = episodes()
    advantage = made.credit(played).tokens["advantage"].token
    (first,) = step()
    old = made.scores(first)["old_log_probs"]
    out = []
    for number in range(rollouts):
        for _ in range(inner_epochs):
            (batch,) = step(None, advantage, old_log_probs=old)
            batch.rollout, batch.score, batch.truncated = number, played.reward, played.truncated
            out.append(batch)
    return out


def fit(made: PolicyGradient, folder: Path, data: list[Any] | None = None, **options: Any) -> Seen:
    seen = Seen()
    loader = DataLoader(batches() if data is None else data, batch_size=None)
    trainer(folder, [seen], **options).fit(made, loader)
    return seen


def test_a_step_logs_the_diagnostics_of_the_specification(tmp_path: Path) -> None:
    made = method(kl=KLPenalty("loss", "k3", 0.1), lr=2.0)
    seen = fit(made, tmp_path)
    first, later = seen.metrics[0], seen.metrics[2]
    names = ("ratio/mean", "ratio/max", "clip/low", "clip/high", "approx_kl", "kl/reference", "kl/token", "loss/policy")
    assert {f"train/{name}" for name in names} <= first.keys()
    assert (first["train/ratio/mean"], first["train/ratio/max"], first["train/approx_kl"]) == (1, 1, 0)
    assert first["train/clip/low"] == first["train/clip/high"] == 0
    assert later["train/ratio/max"] > later["train/ratio/mean"]
    assert later["train/approx_kl"] > 0
    assert later["train/kl/reference"] > 0


def test_the_highest_ratio_is_that_of_all_micro_batches(tmp_path: Path) -> None:
    """A mean of the parts' highest ratios would be lower."""
    made = method()
    made.configure_model()
    log_probs = made.policy(step()[0]).token.detach()
    far = log_probs.clone()
    far[-1] -= 2.0
    parts = step([2, 2], torch.ones(TOKENS), old_log_probs=far)
    seen = fit(made, tmp_path, parts, accumulate_grad_batches=2)
    assert seen.metrics[-1]["train/ratio/max"] == pytest.approx(torch.tensor(2.0).exp().item(), rel=1e-4)


def test_the_rest_of_a_rollout_is_skipped_once_the_policy_went_too_far(tmp_path: Path) -> None:
    free = fit(method(), tmp_path / "free")
    moved = [metrics["train/approx_kl"] for metrics in free.metrics]
    assert moved[1] > 0
    made = method(policy_loss={"target_kl": moved[1] / 2})
    seen = fit(made, tmp_path / "stopped")
    # Step 0 sees ratios of 1, step 1 sees what step 0 did and is still taken; step 2 is skipped.
    assert torch.equal(seen.weights[1], free.weights[1])
    assert torch.equal(seen.weights[2], seen.weights[1])
    assert not torch.equal(free.weights[2], free.weights[1])
    assert seen.metrics[2]["train/early_stop"] == 1
    # The first step of the next rollout is taken.
    assert not torch.equal(seen.weights[3], seen.weights[2])
    assert int(made.stopped) == 1


def test_what_moves_between_rollouts_is_in_the_checkpoint() -> None:
    made = method(
        kl=KLPenalty("reward", "k1", 0.2, controller="adaptive", target=1.0, horizon=100),
        advantage=credit.mean_baseline,
    )
    made.configure_model()
    (batch,) = step()
    tokens = made.scores(batch)
    made.credit(episodes(scores=tokens))
    assert float(made.kl.coef) == pytest.approx(0.2 * (1 - 0.2 * GROUPS * SLOTS / 100))
    other = method(
        kl=KLPenalty("reward", "k1", 0.2, controller="adaptive", target=1.0, horizon=100),
        advantage=credit.mean_baseline,
    )
    other.configure_model()
    other.load_state_dict(made.state_dict())
    assert float(other.kl.coef) == float(made.kl.coef)
    again, resumed = made.credit(episodes(scores=tokens)), other.credit(episodes(scores=tokens))
    assert torch.equal(again.tokens["advantage"].token, resumed.tokens["advantage"].token)
    assert again.metrics == resumed.metrics


def test_validation_reports_reward_length_and_kl_of_samples(tmp_path: Path) -> None:
    made = method(kl=KLPenalty("loss", "k3", 0.1))
    (batch,) = batches(1, 1)
    batch.advantage = None
    batch.truncated = torch.arange(GROUPS * SLOTS) % 4 == 0
    batch.score = batch.score.clone()
    batch.score[0] = float("nan")
    metrics = trainer(tmp_path).validate(made, DataLoader([batch], batch_size=None), verbose=False)[0]
    assert metrics["val/reward/mean"] == pytest.approx(batch.score[1:].mean().item())
    assert metrics["val/response/length"] == pytest.approx(TOKENS / (GROUPS * SLOTS))
    assert metrics["val/response/truncated"] == pytest.approx(0.25)
    assert metrics["val/kl/reference"] == metrics["val/kl/token"] == 0
    assert metrics["val/entropy"] > 0
