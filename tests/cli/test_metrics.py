"""A metric of validations is refused where no validation takes place; when one does, Lightning says."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.metrics import check_logged, check_optimized, check_reached, first_validation


class Counting(BoringModel):
    """Notes how many batches were trained on before the first validation."""

    first: int | None = None
    seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen += 1
        return super().training_step(batch, batch_idx)

    def on_validation_start(self) -> None:
        self.first = self.seen if self.first is None else self.first

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.zeros(7, 32))


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 2, "val_check_interval": 1.0},
        {"max_steps": 7, "val_check_interval": 1.0},
        {"max_steps": 3, "val_check_interval": 0.5},
        {"max_steps": 2, "val_check_interval": 3},
        {"max_epochs": 1, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "check_val_every_n_epoch": 2, "val_check_interval": 5},
        {"max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 10},
        {"max_epochs": 1, "check_val_every_n_epoch": None, "val_check_interval": 10},
        {"max_steps": 2, "accumulate_grad_batches": 2, "val_check_interval": 4},
        {"max_epochs": 1, "limit_train_batches": 3, "val_check_interval": 1.0},
    ],
    ids=str,
)
def test_the_first_validation_is_lightnings(options: dict[str, Any]) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    trainer = Trainer(**options, **quiet, accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0)
    module = Counting()
    trainer.fit(module)
    if module.first is None:
        with pytest.raises(ConfigError, match="optimized_metric=val/loss is logged in validations, and this run ends"):
            check_reached("val/loss", trainer, 7)
    else:
        check_reached("val/loss", trainer, 7)
        batches = min(7, options.get("limit_train_batches", 7))
        assert first_validation(trainer, batches) == module.first


CALLBACKS = {"log_ratios": {"_target_": "rlhf_lightning.callbacks.LogRatios"}}


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        ("val/gold/reward", "is logged by GoldReward, which this run does not have"),
        ("val/sample/reward", "is logged by PolicySamples"),
        ("train/grad_norm", "is logged by NonFiniteStop"),
        ("val/log_ratio/mean", None),
        ("val/loss", None),
    ],
)
def test_what_nothing_logs_is_refused(metric: str, problem: str | None) -> None:
    with nullcontext() if problem is None else pytest.raises(ConfigError, match=problem):
        check_logged(metric, CALLBACKS)


def test_names_of_metrics_say_where_they_are_logged() -> None:
    (problem,) = check_optimized({"optimized_metric": "loss"})
    assert "names of metrics begin with train/ or val/" in problem


def test_a_callback_of_the_users_may_log_anything() -> None:
    callbacks = {"mine": {"_target_": "my_callbacks.Gold"}}
    assert not list(check_optimized({"optimized_metric": "val/gold/reward", "callbacks": callbacks}))
