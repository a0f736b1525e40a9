"""Result of a run."""

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
    assert metrics_of(run(0, val_loss=0.7)) == {}
    assert metrics_of(run(1, val_loss=0.7)) == {"val/loss": pytest.approx(0.7)}
    with pytest.raises(ConfigError, match="val/loss was not logged"):
        optimized(metrics_of(run(0, val_loss=0.7)), "val/loss")


def test_what_is_not_finite_is_null_in_a_file_and_nan_to_those_who_ask(tmp_path):
    before = Result("stopped", metrics={"val/loss": 0.5, "val/bad": math.nan})
    before.write(tmp_path)
    assert all(math.isnan(optimized(result.metrics, "val/bad")) for result in (before, Result.read(tmp_path)))
