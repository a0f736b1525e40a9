"""``last.ckpt``: where the same command goes on, after a kill, SIGTERM or the end."""

from __future__ import annotations

import logging
import signal
import threading
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rlhf_lightning.checkpointing import reopen_validation, validation_pending
from rlhf_lightning.options import Count, Positive

log = logging.getLogger(__name__)


class _Due(IntEnum):
    """What is to be done at the end of an optimiser step; of all processes the largest counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


@dataclass(frozen=True)
class _Counters:
    """Where in its epochs a run is at the end of an optimiser step, so that a longer run can go on from there.

    Lightning counts the epoch as done when training ends, wherever in it the last step was: a run that is extended
    would begin the next epoch and never see the rest. And it forgets to count an epoch that begins with a resume.
    """

    epoch: int  #: from 0, of the last step
    step: int  #: steps taken
    ended: bool  #: the step, its validation and its metrics are counted as done, not as under way

    def write(self, fit: dict[str, Any]) -> None:
        """Change the fit loop's part of a checkpoint."""
        done, begun = self.epoch, self.epoch + 1
        for part in ("total", "current"):
            fit["epoch_progress"][part] = {"ready": begun, "started": begun, "processed": done, "completed": done}
            if self.ended:
                batches = fit["epoch_loop.batch_progress"][part]
                batches["completed"] = batches["processed"] - 1
        if self.ended:
            fit["epoch_loop.state_dict"]["_batches_that_stepped"] = self.step - 1


class LastCheckpoint(Callback):
    """Saves ``last.ckpt`` at the end of optimiser steps, and on SIGTERM saves and stops all processes.

    Lightning's own answer to SIGTERM stops after a micro-batch, which loses the gradients of a step that accumulates
    several, and talks to the other processes from within the signal handler, which can mix with a collective that is
    under way. Here the handler takes a note, the processes agree after the step, and
    ``rlhf_lightning.signals.run_with_sigterm_exit`` makes the exit code 143.

    A validation that was due or under way when the checkpoint was written is run (again, whole) after the resume.

    Args:
        dirpath: folder of ``last.ckpt``; None: ``checkpoints`` in the trainer's ``default_root_dir``.
        every_n_steps: optimiser steps between saves; None: only by time, at SIGTERM and at the end.
        every_n_minutes: at most this long between saves; None: only by steps, at SIGTERM and at the end.
    """

    def __init__(
        self, dirpath: str | None = None, every_n_steps: Count | None = 100, every_n_minutes: Positive | None = 15.0
    ) -> None:
        self.dirpath = dirpath
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._sigterm = False
        self._validation_open = False
        self._saved_open = False  # whether the last save left a validation to come
        self._counters: _Counters | None = None  # while this callback saves
        self._seen = self._saved = 0
        self._saved_at = time.monotonic()
        self._before: Any = None

    @property
    def saved_step(self) -> int:
        """Optimiser steps of the last save, or of the checkpoint that training went on from."""
        return self._saved

    # Set-up

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Run after the callbacks whose state a checkpoint holds, before those that rank checkpoints, then exports.

        An export that fails has its checkpoint then, and a validation that SIGTERM ended early is not exported.
        """
        self.dirpath = str(trainer.strategy.broadcast(self.dirpath or Path(trainer.default_root_dir) / "checkpoints"))
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        ranking = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
        exports = [callback for callback in callbacks if getattr(callback, "after_checkpoints", False)]
        others = [callback for callback in callbacks if callback not in (self, *ranking, *exports)]
        trainer.callbacks = [*others, self, *ranking, *exports]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Take the signal over from Lightning's handler, and count from the step that training goes on from."""
        self._sigterm = self._validation_open = self._saved_open = False
        self._seen = self._saved = trainer.global_step
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._sigterm = True

    # Saving

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, and stop, at the end of an optimiser step."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        due = self._due(trainer)
        if due is not _Due.NOTHING:
            self._validation_open = validation_pending(trainer)
            self._save(trainer)
            self._validation_open = False
        if due is _Due.STOP:
            self._stop(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End a validation pass early."""
        if _fitting(trainer) and self._due(trainer) is _Due.STOP:
            raise StopIteration  # how a loader says that it is exhausted

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop before a checkpoint is ranked by the metrics of an unfinished pass."""
        if _fitting(trainer) and self._due(trainer) is _Due.STOP:
            self._validation_open = True
            self._save(trainer)
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save the end, unless it has been; a module may have learned something since (``unsaved``)."""
        if self._saved != trainer.global_step or self._saved_open or getattr(pl_module, "unsaved", False):
            # Lightning has counted the epoch as done by now, wherever in it the last step was.
            self._save(trainer, epoch=trainer.current_epoch - 1, ended=True)

    def _due(self, trainer: Trainer) -> _Due:
        """What all processes do now; a collective call."""
        due = _Due.NOTHING
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            due = _Due.SAVE
        if self.every_n_minutes and time.monotonic() - self._saved_at > 60 * self.every_n_minutes:
            due = _Due.SAVE
        if self._sigterm:
            due = _Due.STOP
        if trainer.world_size == 1:
            return due
        agreed = trainer.strategy.reduce(torch.tensor(int(due), device=trainer.strategy.root_device), reduce_op="max")
        return _Due(int(agreed))

    def _save(self, trainer: Trainer, epoch: int | None = None, ended: bool = False) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._counters = _Counters(trainer.current_epoch if epoch is None else epoch, trainer.global_step, ended)
        trainer.save_checkpoint(Path(self.dirpath or "") / "last.ckpt")
        self._counters = None
        self._saved, self._saved_at = trainer.global_step, time.monotonic()
        self._saved_open = self._validation_open

    def _stop(self, trainer: Trainer) -> None:
        log.info("SIGTERM: saved %s/last.ckpt after step %d", self.dirpath, trainer.global_step)
        raise SIGTERMException

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the counters of the end of an optimiser step, and of a validation that is still to come."""
        fit = checkpoint["loops"]["fit_loop"]
        if self._counters is not None:
            self._counters.write(fit)
        if self._validation_open:
            reopen_validation(fit)


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
