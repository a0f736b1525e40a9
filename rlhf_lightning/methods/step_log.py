"""Metrics that the loggers and callbacks of a run have received, kept with its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

#: Key of a checkpoint: the last of every metric, what is to be logged yet, and where the loggers' files stand.
LOGGED = "logged"


class StepLog:
    """Hands the metrics of optimiser steps to the loggers, and of a step only what it has.

    Lightning's ``self.log`` hands every logger the last value of a name again in each later step of the epoch that
    lacks it: the rewards of a label that no response of the step carries, or of a rollout that was drawn steps ago.

    With ``log_every_n_steps`` above 1 a logged step also has the latest value of what only the steps since the logged
    one before it had.

    A checkpoint has all of it (:meth:`state`), so that a resumed run logs what an unbroken one does, each row once.
    """

    def __init__(self) -> None:
        self.means: dict[str, Tensor] = {}  #: of the step that ended last, until callbacks have them
        self._latest: dict[str, Any] = {}  # of steps since the last logged one
        self._validated: set[str] = set()  # metrics of the validation passes so far
        self._step = 0  # optimiser steps that were handed over
        self._resumed: dict[str, float] = {}  # last of every metric, from a checkpoint

    def begin(self, trainer: Trainer) -> None:
        """Start at the step that the trainer stands at, with the metrics of the checkpoint that it resumes."""
        self._step = trainer.global_step
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._resumed.items()})
        self._validated |= {name for name in self._resumed if name.startswith("val/")}
        self._resumed = {}

    def due(self, trainer: Trainer) -> bool:
        """Return whether a step has ended whose metrics were not handed over; the same on every process."""
        return self._step != trainer.global_step

    def __call__(self, trainer: Trainer, metrics: dict[str, Tensor]) -> None:
        """Take the metrics of the optimiser step that ``trainer`` has just taken, and log them where it logs.

        Args:
            trainer: whose loggers they go to.
            metrics: scalars by name.
        """
        self._step, self.means = trainer.global_step, metrics
        self._latest |= metrics
        often: Any = trainer
        if not (trainer.global_step % often.log_every_n_steps == 0 or trainer.should_stop):
            return
        numbers = {name: float(value) for name, value in self._latest.items()}
        self._latest = {}
        for logger in trainer.loggers if numbers else ():
            # Lightning counts logged steps from 0.
            logger.log_metrics(numbers | {"epoch": trainer.current_epoch}, step=trainer.global_step - 1)
            logger.save()

    def validated(self, trainer: Trainer, metrics: Mapping[str, Tensor]) -> None:
        """Take the metrics of a validation pass: what an earlier one had and this one lacks is nan to callbacks."""
        self._validated |= metrics.keys()
        absent = torch.tensor(torch.nan)
        trainer.callback_metrics.update(dict.fromkeys(self._validated - metrics.keys(), absent))

    # Checkpoints

    def state(self, trainer: Trainer) -> dict[str, Any]:
        """Return what a checkpoint keeps, once the loggers' files are on the disk."""
        metrics = {name: float(value) for name, value in (trainer.callback_metrics | self.means).items()}
        files: list[Any] = [logger for logger in trainer.loggers if hasattr(logger, "position")]
        positions = {type(logger).__name__: logger.position() for logger in files}
        latest = {name: float(value) for name, value in self._latest.items()}
        return {"metrics": metrics, "latest": latest, "loggers": positions}

    def load(self, trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
        """Take what a checkpoint kept, and cut the loggers' files back to it; older ones kept nothing."""
        state = checkpoint.get(LOGGED) or {"metrics": {}, "latest": {}, "loggers": {}}
        self._resumed, self._latest = dict(state["metrics"]), dict(state["latest"])
        files: list[Any] = [logger for logger in trainer.loggers if hasattr(logger, "rewind")]
        positions = state["loggers"]
        if isinstance(positions, list):  # of a version in which the CSV file alone had a position
            positions = dict.fromkeys(("CSVLogger",), positions[0]) if positions else {}
        for logger in files:
            logger.rewind(positions.get(type(logger).__name__), int(checkpoint["global_step"]))
