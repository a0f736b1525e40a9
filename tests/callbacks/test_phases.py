"""Seconds of optimiser steps reach the log with the next rollout."""

from __future__ import annotations

import lightning as L
import pytest

from rlhf_lightning.callbacks import PhaseTimes, phases
from tests.helpers.jobs import Memory
from tests.helpers.online import module_of, online
from tests.helpers.training import loader, preference, trainer


class Clock(L.Callback):
    """A clock that runs in optimiser steps, by one second each, and in validation, by a hundred each batch."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def on_before_optimizer_step(self, *args) -> None:
        self.now += 1.0

    def on_validation_batch_end(self, *args, **kwargs) -> None:
        self.now += 100.0


def test_a_rollout_logs_the_steps_of_the_one_before(tmp_path, monkeypatch):
    """Four steps a rollout, whose first one logs; the first rollout has none before. Fails when validation counts."""
    logger, module, clock = Memory(), module_of(), Clock()
    monkeypatch.setattr(phases, "time", clock)
    run = trainer(tmp_path, [PhaseTimes(), clock], logger=logger, max_epochs=1, val_check_interval=4)
    run.fit(module, datamodule=online(module, None))
    assert len(logger.series("train/time/generate")) == 3
    assert logger.series("train/time/train") == [4.0, 4.0]
    assert clock.now >= 112.0


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
