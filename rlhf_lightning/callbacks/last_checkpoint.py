"""``last.ckpt``: the checkpoint from which the same command resumes after a kill, SIGTERM, Ctrl-C or the end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rlhf_lightning.checkpointing import reopen_validation, validation_pending
from rlhf_lightning.options import Count, Positive

log = logging.getLogger(__name__)


#: Actions due at the end of an optimiser step; the largest one of all processes counts. Larger values are the number
#: of the signal that asks to stop.
_NOTHING, _SAVE = 0, 1
#: Signals that ask to stop.
_STOPS = (signal.SIGTERM, signal.SIGINT)
#: Key of a checkpoint: a validation at its step is to come.
_OPEN = "validation_open"
#: Key of a checkpoint: a callback had ended training early.
_ENDED = "ended_early"
_NOTICE = b"\nCtrl-C: the step is finished and saved; once more ends the run at once, without saving\n"


@dataclass(frozen=True)
class _Counters:
    """Position of a run in its epochs at the end of an optimiser step, from which a longer run can be resumed.

    Lightning counts the epoch as done when training ends, even if the last step was in its middle: an extended run
    would begin the next epoch and never see the rest. Lightning also forgets to count an epoch that begins with a
    resume.
    """

    epoch: int  #: from 0, of the last step
    step: int  #: steps taken
    ended: bool  #: count the step, its validation and its metrics as done, not as in progress

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
    """Saves ``last.ckpt`` at the end of optimiser steps, and on SIGTERM and Ctrl-C saves and stops all processes.

    Lightning handles SIGTERM by stopping after a micro-batch, which loses the gradients of a step that accumulates
    several. It also communicates with the other processes inside the signal handler, which can interfere with a running
    collective; on Ctrl-C it saves nothing. Here, the handler only records the signal, the processes agree after the
    step, and ``rlhf_lightning.signals.run_with_exit_code`` sets the exit code to 143 or 130. A second Ctrl-C ends the
    run at once. A process that was started with SIGINT ignored, as shells start background jobs, keeps ignoring it.

    A validation that was due or in progress when the checkpoint was written is run again in full after the resume. The
    same holds after the last step: a run that was killed in its last validation or export finishes them. A run that
    ``EarlyStopping`` had ended stays ended, unless it is resumed without that callback.

    Args:
        dirpath: folder of ``last.ckpt``; None: ``checkpoints`` in the trainer's ``default_root_dir``.
        every_n_steps: optimiser steps between saves; None: save only by time, when stopped and at the end.
        every_n_minutes: maximum minutes between saves; None: save only by steps, when stopped and at the end.
    """

    def __init__(
        self, dirpath: str | None = None, every_n_steps: Count | None = 100, every_n_minutes: Positive | None = 15.0
    ) -> None:
        self.dirpath = dirpath
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self._stop_signal = 0
        self._validation_open = self._resumed_open = False
        self._saved_open = False  # whether the last save left a validation to come
        self._resumed_ended = False
        self._counters: _Counters | None = None  # while this callback saves
        self._seen = self._saved = 0
        self._saved_at = time.monotonic()
        self._reports = True  # of several processes the first one
        self._before: dict[int, Any] = {}  # handlers of signals that were taken over
        self._limits = _Limits()

    @property
    def saved_step(self) -> int:
        """Optimiser steps of the last save, or of the checkpoint that training was resumed from."""
        return self._saved

    # Set-up

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Run after the callbacks whose state a checkpoint holds, before those that count or rank validations.

        A validation that a signal ended early is repeated after the resume and counted then. If an export fails, its
        checkpoint has been saved.
        """
        self.dirpath = str(trainer.strategy.broadcast(self.dirpath or Path(trainer.default_root_dir) / "checkpoints"))
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        ranking = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
        exports = [callback for callback in callbacks if getattr(callback, "after_checkpoints", False)]
        counting = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
        others = [callback for callback in callbacks if callback not in (self, *counting, *ranking, *exports)]
        others = [callback for callback in others if not isinstance(callback, _Limits)]
        trainer.callbacks = [self._limits, *others, self, *counting, *ranking, *exports]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Take the signals over from Lightning's handlers, and count from the step that training resumes from."""
        if self._resumed_open and trainer.fit_loop.done:
            self._limits.lift(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if self._resumed_ended and any(isinstance(callback, EarlyStopping) for callback in callbacks):
            trainer.should_stop = True
        self._stop_signal, self._validation_open = 0, False
        self._saved_open, self._resumed_open = self._resumed_open, False
        self._seen = self._saved = trainer.global_step
        self._saved_at, self._reports = time.monotonic(), trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Restore the signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._stop_signal = max(self._stop_signal, signum)
        if signum == signal.SIGINT:
            signal.signal(signum, signal.default_int_handler)
            if self._reports:
                os.write(2, _NOTICE)  # a handler may not touch buffers that it has interrupted

    # Saving

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, and stop, at the end of an optimiser step."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        due = self._due(trainer)
        if due != _NOTHING:
            self._validation_open = validation_pending(trainer)
            self._save(trainer)
            self._validation_open = False
        if due > _SAVE:
            self._stop(trainer, due)

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
        if _fitting(trainer) and self._due(trainer) > _SAVE:
            raise StopIteration  # the signal of an exhausted loader

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop before a checkpoint is ranked by the metrics of an unfinished pass."""
        if _fitting(trainer) and (due := self._due(trainer)) > _SAVE:
            self._validation_open = True
            self._save(trainer)
            self._stop(trainer, due)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save the end, unless it was saved; a module may have changed since then (``unsaved``)."""
        if self._saved != trainer.global_step or self._saved_open or getattr(pl_module, "unsaved", False):
            # Lightning has counted the epoch as done by now, even if the last step was in its middle.
            self._save(trainer, epoch=trainer.current_epoch - 1, ended=True)

    def _due(self, trainer: Trainer) -> int:
        """Agree on the action of all processes; a collective call."""
        due = self._stop_signal or _NOTHING
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            due = max(due, _SAVE)
        if self.every_n_minutes and time.monotonic() - self._saved_at > 60 * self.every_n_minutes:
            due = max(due, _SAVE)
        if trainer.world_size == 1:
            return due
        agreed = trainer.strategy.reduce(torch.tensor(due, device=trainer.strategy.root_device), reduce_op="max")
        return int(agreed)

    def _save(self, trainer: Trainer, epoch: int | None = None, ended: bool = False) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._counters = _Counters(trainer.current_epoch if epoch is None else epoch, trainer.global_step, ended)
        trainer.save_checkpoint(Path(self.dirpath or "") / "last.ckpt")
        self._counters = None
        self._saved, self._saved_at = trainer.global_step, time.monotonic()
        self._saved_open = self._validation_open

    def _stop(self, trainer: Trainer, number: int) -> NoReturn:
        name = signal.Signals(number).name
        log.info("%s: saved %s/last.ckpt after step %d", name, self.dirpath, trainer.global_step)
        raise SIGTERMException(128 + number)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Record whether a validation is still due, and whether training had been ended early."""
        self._resumed_open, self._resumed_ended = checkpoint.get(_OPEN, False), checkpoint.get(_ENDED, False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the counters of the end of an optimiser step, and of a validation that is still due."""
        fit = checkpoint["loops"]["fit_loop"]
        checkpoint[_OPEN] = self._validation_open
        checkpoint[_ENDED] = self._counters is not None and self._counters.ended and trainer.should_stop
        if self._counters is not None:
            self._counters.write(fit)
        if self._validation_open:
            reopen_validation(fit)


class _Limits(Callback):
    """Lets a resumed run enter training when all of its steps are taken, so that it ends like any other run.

    Lightning returns at once in that case, so a run that was killed in its last validation or export would never finish
    it. The limits are lifted from before training until its first hook; if a validation is due, until the first hook of
    the epoch or of that validation. This callback runs first, so that no other callback sees the limits lifted.
    """

    def __init__(self) -> None:
        self._steps_and_epochs: tuple[int, int | None] | None = None

    def lift(self, trainer: Trainer) -> None:
        """Lift the limits before training."""
        loop = trainer.fit_loop
        self._steps_and_epochs = loop.epoch_loop.max_steps, loop.max_epochs
        if loop.epoch_loop.max_steps != -1:  # what is counted in steps stays so
            loop.epoch_loop.max_steps = sys.maxsize
        loop.max_epochs = -1

    def put_back(self, trainer: Trainer) -> None:
        """Set the limits as they were."""
        if self._steps_and_epochs is not None:
            loop = trainer.fit_loop
            loop.epoch_loop.max_steps, loop.max_epochs = self._steps_and_epochs
            self._steps_and_epochs = None

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Lift them where a checkpoint is resumed."""
        if trainer.ckpt_path is not None:
            self.lift(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put them back."""
        self.put_back(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put them back."""
        self.put_back(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Put them back: an epoch that is resumed in its middle has no hook before its validation."""
        self.put_back(trainer)


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
