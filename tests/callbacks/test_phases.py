"""Seconds of optimiser steps reach the log with the next rollout."""

from __future__ import annotations

import time

import lightning as L
import pytest

from rlhf_lightning.callbacks import PhaseTimes
from tests.helpers.jobs import Memory
from tests.helpers.online import module_of, online
from tests.helpers.training import loader, preference, trainer


class Slow(L.Callback):
    """Every step takes at least this long, and validation much longer."""

    def on_before_optimizer_step(self, *args) -> None:
        time.sleep(0.05)

    def on_validation_batch_end(self, *args, **kwargs) -> None:
        time.sleep(1.0)


def test_a_rollout_logs_the_steps_of_the_one_before(tmp_path):
    """Four steps a rollout, whose first one logs; the first rollout has none before. Fails when validation counts."""
    logger, module = Memory(), module_of()
    run = trainer(tmp_path, [PhaseTimes(), Slow()], logger=logger, max_epochs=1, val_check_interval=4)
    run.fit(module, datamodule=online(module, None))
    seconds = logger.series("train/time/train")
    assert len(logger.series("train/time/generate")) == 3
    assert len(seconds) == 2
    assert all(0.2 <= value < 1.0 for value in seconds)


@pytest.mark.parametrize("phase", ["generate", "reward", "score", "credit", "sync"])
def test_every_phase_of_a_rollout_is_logged(tmp_path, phase):
    logger, module = Memory(), module_of()
    run = trainer(tmp_path, logger=logger, max_epochs=1, max_steps=1, limit_val_batches=0)
    run.fit(module, datamodule=online(module, None))
    assert logger.series(f"train/time/{phase}")[0] > 0


def test_other_methods_have_no_phases(tmp_path):
    logger = Memory()
    run = trainer(tmp_path, [PhaseTimes()], logger=logger)
    run.fit(preference(), loader())
    assert not any(name.startswith("train/time") for row in logger.rows for name in row)
