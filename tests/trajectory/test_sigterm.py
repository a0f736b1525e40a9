"""SIGTERM: the step is finished, the checkpoint written, the exit code 143, and the resumed run is exact."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from rlhf_lightning.signals import exit_on_sigterm, run_with_exit_code
from tests.helpers.jobs import differences, final_state, fit, forked


class Sigterm(L.Callback):
    """Signals its own process in the middle of something."""

    def __init__(self, micro_batch: int | None = None, validation: int | None = None) -> None:
        self.micro_batch, self.validation = micro_batch, validation

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.micro_batch:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        if (trainer.global_step, batch_idx) == (self.validation, 2):
            os.kill(os.getpid(), signal.SIGTERM)


class Validations(L.Callback):
    """Writes down which validations were completed, and over how many batches."""

    def __init__(self, folder: Path) -> None:
        self.file, self.batches = folder / "validations.txt", 0

    def on_validation_start(self, trainer, module) -> None:
        self.batches = 0

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.batches += 1

    def on_validation_end(self, trainer, module) -> None:
        self.file.parent.mkdir(exist_ok=True)
        with self.file.open("a") as file:
            file.write(f"{trainer.global_step}:{self.batches}\n")


def run(folder: Path, *callbacks: L.Callback, **options) -> None:
    run_with_exit_code(lambda: fit(folder, callbacks=callbacks, accumulate_grad_batches=2, **options))


@pytest.mark.parametrize("micro_batch", [6, 7], ids=["first-micro-batch-of-a-step", "last-micro-batch-of-a-step"])
def test_sigterm_finishes_the_step_and_exits_with_143(tmp_path, micro_batch):
    """Fails when the stop waits for a micro-batch instead of a step: half of the gradients would be lost."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole)
    assert forked(run, cut, Sigterm(micro_batch)) == 143
    assert torch.load(cut / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    run(cut)
    assert differences(final_state(whole), final_state(cut)) == []


@pytest.mark.parametrize("step", [5, 10])
def test_sigterm_in_validation_runs_it_again(tmp_path, step):
    """Fails when the resumed run skips the validation, or resumes in its middle, or trains on averaged weights."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, Validations(whole))
    assert forked(run, cut, Sigterm(validation=step), Validations(cut)) == 143
    run(cut, Validations(cut))
    assert differences(final_state(whole), final_state(cut)) == []
    assert (whole / "validations.txt").read_text().split() == ["5:5", "10:5", "15:5"]
    expected = {5: ["5:3", "5:5", "10:5", "15:5"], 10: ["5:5", "10:3", "10:5", "15:5"]}
    assert (cut / "validations.txt").read_text().split() == expected[step]


def test_kill_while_a_validation_is_due_runs_it_after_the_resume(tmp_path):
    """The checkpoint of an epoch's last step is written before the epoch's validation."""

    class KillInValidation(L.Callback):
        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
            if trainer.global_step == 10:
                os.kill(os.getpid(), signal.SIGKILL)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, callbacks=(Validations(whole),))
    assert forked(fit, cut, callbacks=(KillInValidation(), Validations(cut))) == -signal.SIGKILL
    fit(cut, callbacks=(Validations(cut),))
    assert differences(final_state(whole), final_state(cut)) == []
    assert (cut / "validations.txt").read_text().split() == ["5:5", "10:5", "15:5"]


def test_sigterm_before_training_exits_with_143():
    def job() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)

    assert forked(run_with_exit_code, job) == 143


def test_sigterm_outside_a_job_exits_with_143():
    """Before a configuration is read and after a result is written; without a handler the process dies with -15."""

    def job() -> None:
        with exit_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    assert forked(job) == 143
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_handler_is_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
