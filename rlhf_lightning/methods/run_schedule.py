"""The learning-rate schedule of a run: over the run's length, and resumed in a run of another length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from rlhf_lightning.methods.optimizers import make_scheduler
from rlhf_lightning.methods.resume import check_options, lengthen, options_of, report_early_end, report_length

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

#: Key of a checkpoint: optimiser steps of the run, where its schedule depends on them.
SCHEDULE_STEPS = "schedule_steps"


class RunSchedule:
    """A schedule partial with what a resume needs: the run's length and the options that it began with.

    Args:
        schedule: a partial, completed with the optimiser and the run's number of steps; None: a constant rate.
    """

    def __init__(self, schedule: Callable[..., LRScheduler] | None) -> None:
        self.schedule = schedule
        self.steps: int | None = None  #: the run's length, where the schedule depends on it
        self._configured: list[dict[str, Any]] = []  # options of the parameter groups, before a checkpoint is loaded
        self._resumed: dict[str, Any] | None = None  # of the run that wrote the checkpoint

    def of(self, optimizer: Optimizer, length: Callable[[], float]) -> LRScheduler | None:
        """The schedule of an optimiser.

        Args:
            optimizer: that it drives.
            length: of the run, in optimiser steps; asked only where the schedule depends on it.

        Raises:
            ValueError: it needs the run's length, and the run has no end.
        """
        self.steps = None
        made = self.schedule and make_scheduler(self.schedule, optimizer, lambda: self._finite(length()))
        self._configured = options_of(optimizer)
        return made

    def _finite(self, steps: float) -> int:
        if steps == float("inf"):
            raise ValueError("the schedule needs the run's length: set trainer.max_steps or trainer.max_epochs")
        self.steps = int(steps)
        return self.steps

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {SCHEDULE_STEPS: self.steps}

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take what a checkpoint holds, for :meth:`resume`."""
        self._resumed = {SCHEDULE_STEPS: checkpoint.get(SCHEDULE_STEPS)}

    def resume(self, trainer: Trainer) -> None:
        """Compare a checkpoint's optimiser with the options, and follow the learning rates of the run's length.

        Raises:
            ValueError: a learning rate, weight decay or epsilon is another than that of the checkpoint.
        """
        before, self._resumed = self._resumed, None
        if before is not None:
            check_options(self._configured, trainer.optimizers[0])
            self._lengthen(trainer, before[SCHEDULE_STEPS])
        if self.schedule is not None and trainer.is_global_zero:
            report_early_end(self.schedule, trainer.estimated_stepping_batches)

    def _lengthen(self, trainer: Trainer, before: int | None) -> None:
        if self.schedule is None or self.steps in (None, before):
            return
        assert self.steps is not None
        done, scheduler = trainer.global_step, trainer.lr_scheduler_configs[0].scheduler
        differing = lengthen(self.schedule, scheduler, before=before, now=self.steps, done=done)
        if trainer.is_global_zero:
            report_length(differing, before=before, now=self.steps, done=done)
