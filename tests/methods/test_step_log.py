"""A metric that a step lacks is not logged, in particular not with its last value."""

from __future__ import annotations

import csv
import math

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.callbacks import HFExport
from rlhf_lightning.loggers import CSVLogger
from tests.helpers.jobs import Memory
from tests.helpers.training import loader, preference, trainer


class Sometimes(L.Callback):
    """Tracks the step's number at some steps, and that of the pass at the first validation only."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.passes = 0

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if trainer.global_step in self.steps:
            pl_module.track("train/sometimes", torch.tensor(float(trainer.global_step)))

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.passes += 1
        pl_module.track("val/score", torch.ones(int(self.passes == 1)))


def run(tmp_path, *callbacks, steps=6, **options):
    memory = Memory()
    loggers = [memory, CSVLogger(str(tmp_path))]
    made = trainer(tmp_path, callbacks, logger=loggers, **options)
    made.fit(preference(), loader(steps), options.get("val_check_interval") and loader(1))
    with (tmp_path / "metrics.csv").open() as file:
        return made, memory, list(csv.DictReader(file))


def test_a_step_without_a_metric_has_an_empty_cell(tmp_path):
    """Fails where a value of an earlier step of the epoch is logged again, in any logger."""
    made, memory, rows = run(tmp_path, Sometimes(2, 5))
    assert [row["train/sometimes"] for row in rows] == ["", "2.0", "", "", "5.0", ""]
    assert [row.get("train/sometimes") for row in memory.rows] == [None, 2.0, None, None, 5.0, None]
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert all(row["train/loss"] and row["epoch"] == "0.0" for row in rows)
    assert float(made.callback_metrics["train/sometimes"]) == 5, "callbacks have the latest"


def test_steps_between_logged_ones_are_not_lost(tmp_path):
    """A rollout's numbers fall on its first step, which need not be a logged one; once logged they are gone."""
    _, memory, rows = run(tmp_path, Sometimes(1, 2), steps=9, log_every_n_steps=3)
    assert [(row["step"], row["train/sometimes"]) for row in rows] == [("2", "2.0"), ("5", ""), ("8", "")]
    assert [row["step"] for row in memory.rows] == [2, 5, 8]


def test_a_validation_without_a_metric_has_none(tmp_path):
    """Fails where the best checkpoint, the export or the result take the value of an earlier pass for this one's."""
    best = ModelCheckpoint(
        tmp_path, "{step}", monitor="val/score", mode="max", save_top_k=2, save_on_train_epoch_end=False
    )
    export = HFExport(monitor="val/score", mode="max", last=False, folder=str(tmp_path / "export"))
    made, memory, rows = run(tmp_path, Sometimes(), best, steps=4, val_check_interval=2, enable_checkpointing=True)
    assert [row["val/score"] for row in rows] == ["", "1.0", "", ""]
    assert memory.series("val/score") == [1.0]
    assert math.isnan(made.callback_metrics["val/score"])
    assert best.best_model_path.endswith("step=2.ckpt")
    export._best = None
    export.on_validation_end(made, None)  # a value that is missing is exported by nobody
    assert not (tmp_path / "export").exists()
