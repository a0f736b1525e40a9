"""Whatever saves within an optimiser step, and whenever: the resumed run ends with the bits of the unbroken one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, OnExceptionCheckpoint

from rlhf_lightning.signals import run_with_exit_code
from tests.helpers.jobs import Memory, differences, final_state, fit, forked
from tests.trajectory.test_sigterm import Sigterm


class Fails(L.Callback):
    """An error in a micro-batch, before its gradients are there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_before_backward(self, trainer, module, loss) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.number:
            raise RuntimeError("out of memory")


class SavesAndDies(L.Callback):
    """A checkpoint after a micro-batch, as a clock may ask for, and nothing after it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.number:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            os.kill(os.getpid(), signal.SIGKILL)


def on_error(folder: Path) -> L.Callback:
    return OnExceptionCheckpoint(folder / "checkpoints", "last")


def in_validation(folder: Path) -> L.Callback:
    """Lightning's own checkpoint of a validation that falls between two micro-batches, the last thing saved."""
    return ModelCheckpoint(folder / "checkpoints", filename="last", monitor="val/loss", enable_version_counter=False)


#: Micro-batches between validations, by those of a step: some validations fall within a step.
VALIDATE = {1: 5, 2: 3, 4: 2}

CASES: dict[str, tuple[int, Callable[[Path], list[L.Callback]], int]] = {
    "error in the first micro-batch of a step": (2, lambda folder: [on_error(folder), Fails(6)], 1),
    "error in the last micro-batch of a step": (2, lambda folder: [on_error(folder), Fails(7)], 1),
    "error in the last step of an epoch": (2, lambda folder: [on_error(folder), Fails(9)], 1),
    "error in the first step of an epoch": (2, lambda folder: [on_error(folder), Fails(11)], 1),
    "error before any step": (2, lambda folder: [on_error(folder), Fails(1)], 1),
    "error without accumulation": (1, lambda folder: [on_error(folder), Fails(6)], 1),
    "save between micro-batches": (2, lambda folder: [SavesAndDies(12)], -signal.SIGKILL),
    "SIGTERM in a validation between micro-batches": (2, lambda folder: [Sigterm(validation=4)], 143),
    "SIGTERM in a validation before any step": (4, lambda folder: [Sigterm(validation=0)], 143),
    "checkpoint of a validation between micro-batches": (2, lambda folder: [in_validation(folder), Fails(3)], 1),
}


def run(folder: Path, accumulate: int, *callbacks: L.Callback) -> None:
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 2, "val_check_interval": VALIDATE[accumulate]}
    run_with_exit_code(lambda: fit(folder, callbacks=callbacks, enable_checkpointing=saves, **options))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """Final state of a run by the micro-batches of its steps."""

    @cache
    def state(accumulate: int) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("unbroken")
        run(folder, accumulate)
        return final_state(folder)

    return state


@pytest.mark.parametrize("case", CASES)
def test_resume_begins_with_the_whole_step(tmp_path, unbroken, case):
    """Fails where gradients that were accumulated are lost, or a micro-batch that failed is skipped."""
    accumulate, callbacks, code = CASES[case]
    assert forked(run, tmp_path, accumulate, *callbacks(tmp_path)) == code
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    run(tmp_path, accumulate)
    expected, resumed = unbroken(accumulate), final_state(tmp_path)
    for state in (expected, resumed):  # how many validation batches of the epoch Lightning has counted
        state["loops"]["fit_loop"].pop("epoch_loop.val_loop.batch_progress", None)
    assert expected["global_step"] == 10
    assert differences(expected, resumed) == []


class FailsInValidation(L.Callback):
    """An error in the second batch of the validation after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step and batch_idx == 1:
            raise RuntimeError("out of memory")


def by_steps(folder: Path) -> L.Callback:
    """Lightning's own checkpoint by steps, of which the fourth is followed by a validation."""
    return ModelCheckpoint(folder / "checkpoints", "last", every_n_train_steps=4, enable_version_counter=False)


def logged(folder: Path, *callbacks: L.Callback) -> None:
    """Train without ``LastCheckpoint`` and keep what is logged, also of a run that fails."""
    saves, logger = any(isinstance(callback, Checkpoint) for callback in callbacks), Memory()
    try:
        fit(
            folder,
            callbacks=callbacks,
            last=False,
            logger=logger,
            enable_checkpointing=saves,
            max_epochs=2,
            val_check_interval=2,
        )
    finally:
        (folder / "rows.json").write_text(json.dumps(logger.rows))


def validations(folder: Path) -> dict[str, float]:
    rows = json.loads((folder / "rows.json").read_text())
    return {f"{row['step']} {name}": row[name] for row in rows for name in row if name.startswith("val/")}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Validation metrics of the unbroken run, by step and name."""
    folder = tmp_path_factory.mktemp("measured")
    logged(folder)
    return validations(folder)


#: What saves, and the step, counted from 0, after which the resumed run validates first.
DUE: dict[str, tuple[Callable[[Path], list[L.Callback]], int]] = {
    "checkpoint by steps before a validation": (lambda folder: [by_steps(folder), Fails(5)], 3),
    "error in a validation": (lambda folder: [on_error(folder), FailsInValidation(4)], 3),
    "checkpoint of the last validation": (lambda folder: [in_validation(folder), Fails(5)], 6),
}


@pytest.mark.parametrize("case", DUE)
def test_a_validation_that_a_checkpoint_interrupts_is_run_whole(tmp_path, measured, case):
    """Fails where a resume skips a validation that was due, resumes in the middle of one, or repeats one."""
    callbacks, first = DUE[case]
    assert forked(logged, tmp_path, *callbacks(tmp_path)) == 1
    before = validations(tmp_path)
    logged(tmp_path)
    after = validations(tmp_path)
    assert min(int(name.split()[0]) for name in after) == first
    assert {**before, **after} == measured
