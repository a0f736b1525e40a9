"""What a run came to, as its result says it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.train import metrics_of, optimized


def run(step: int, **metrics: float):
    named = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(trainer=SimpleNamespace(global_step=step, callback_metrics=named))


def test_what_was_measured_before_the_first_step_is_no_result():
    """A sanity check that a signal has interrupted; fails where its numbers become those of the run."""
    assert metrics_of(run(0, val_loss=0.7), None) == {}
    assert metrics_of(run(1, val_loss=0.7), None) == {"val/loss": pytest.approx(0.7)}
    with pytest.raises(ConfigError, match="val/loss was not logged"):
        optimized(metrics_of(run(0, val_loss=0.7), None), "val/loss")


def test_an_earlier_part_stands_where_nothing_newer_was_measured(tmp_path):
    before = Result("stopped", metrics={"train/loss": 0.5, "val/loss": 0.5, "val/win": 0.75, "val/bad": math.nan})
    before.write(tmp_path)
    earlier = Result.read(tmp_path)
    assert metrics_of(run(4, train_loss=0.25), earlier) == {"train/loss": 0.25, "val/loss": 0.5, "val/win": 0.75}
    found = metrics_of(run(4, train_loss=0.25, val_loss=0.125), earlier)
    assert (found["val/loss"], found["train/loss"]) == (0.125, 0.25)
    assert math.isnan(found["val/win"]), "this part has validated, and had no such number"
    assert all(math.isnan(optimized(metrics, "val/bad")) for metrics in (before.metrics, earlier.metrics))
