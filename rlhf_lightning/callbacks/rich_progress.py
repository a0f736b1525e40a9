"""The progress bar: one line that fits 80 columns."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor

from rlhf_lightning.options import Positive
from rlhf_lightning.types import PackedBatch

#: Metrics that the line shows if they exist: label, metric, format.
SHOWN = (
    ("loss", "train/loss", ".4f"),
    ("margin", "train/reward/margin", "+.3f"),
)
#: Metrics of an on-policy method, whose loss is not informative.
SHOWN_ONLINE = (
    ("loss", "train/loss", ".3f"),
    ("reward", "train/reward/mean", "+.2f"),
    ("score", "train/score/mean", "+.2f"),
)
#: Phases of a rollout and its steps, shown as shares of their total time: label, metric.
PHASES = (
    ("gen", "train/time/generate"),
    ("train", "train/time/train"),
)
SPEED = "train/throughput/tokens_per_second"


class AlignmentProgressBar(ProgressBar):
    """Shows step, loss, reward margin, useful tokens per second and the remaining time.

    For on-policy methods it shows the mean reward of the rollout, and the shares of time spent on drawing responses and
    on optimiser steps (the rest: rewards, log-probs of the rollout, weights for the engine).

    The bar counts optimiser steps of the whole run, not batches of an epoch, so that the remaining time is that of the
    run. Without a terminal it writes a plain line every tenth of the run, so that logs of jobs stay readable.

    Args:
        refresh_per_second: redraws of the line per second.
        console: console to draw on; None: standard error.
    """

    def __init__(self, refresh_per_second: Positive = 5.0, console: Console | None = None) -> None:
        super().__init__()
        self.refresh_per_second = refresh_per_second
        self.console = console or Console(file=sys.stderr)
        self._enabled = True
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._reported = self._step = 0
        self._speed: float | None = None
        self._drawn = 0.0

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Hide the bar; Lightning calls it in every process except the first."""
        self._enabled = False

    # Drawing

    def _start(self, name: str, total: float, done: int = 0) -> None:
        if not self._enabled:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("[bold]{task.description}", table_column=Column(min_width=5)),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6), complete_style="cyan"),
                MofNCompleteColumn(),
                TextColumn("{task.fields[metrics]}", table_column=Column(no_wrap=True)),
                _TimeLeft(table_column=Column(no_wrap=True)),
                console=self.console,
                refresh_per_second=self.refresh_per_second,
                expand=True,
                disable=not self.console.is_terminal,
            )
            original = sys.stderr
            self._progress.start()
            redirect_handlers(original, sys.stderr)
        finite = total if total != float("inf") else None
        self._tasks[name] = self._progress.add_task(name, total=finite, completed=done, metrics="")

    def _move(self, name: str, done: int, metrics: str = "") -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.update(self._tasks[name], completed=done, metrics=metrics)

    def _end(self, name: str) -> None:
        if self._progress is not None and name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def _stop(self) -> None:
        if self._progress is not None:
            proxy = sys.stderr
            self._progress.stop()
            redirect_handlers(proxy, sys.stderr)
            self._progress = None
        self._tasks = {}

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the bar of the run."""
        self._start("train", trainer.estimated_stepping_batches, trainer.global_step)
        self._reported = self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Advance by a step; the metrics are those of the previous step, which is complete on every process."""
        if not self._enabled or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self.console.is_terminal:
            if time.monotonic() - self._drawn > 1 / self.refresh_per_second:  # reading metrics waits for the device
                self._drawn = time.monotonic()
                self._move("train", trainer.global_step, self._summary(trainer))
            return
        total = trainer.estimated_stepping_batches
        if trainer.global_step - self._reported >= max(1, total // 10):
            self._reported = trainer.global_step
            line = f"train {trainer.global_step}/{total} {self._summary(trainer)}"
            self.console.print(line, soft_wrap=True, highlight=False)

    def _summary(self, trainer: Trainer) -> str:
        """Format the metrics; the speed is an average of about the last ten updates."""
        metrics = dict(trainer.callback_metrics)
        if SPEED in metrics:
            speed = float(metrics[SPEED])
            self._speed = speed if self._speed is None else 0.9 * self._speed + 0.1 * speed
            metrics[SPEED] = torch.tensor(self._speed)
        return summary(metrics)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the finished line on the screen."""
        self._move("train", trainer.global_step, self._summary(trainer))
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Restore the terminal."""
        self._stop()

    # Samples

    @contextmanager
    def counting(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        """Give a function to call after each of ``total`` portions of another callback's work, which may be fewer.

        Without a terminal each quarter is a line.

        Args:
            name: of the work, short.
            total: most portions.
        """
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            self._move(name, done)
            if self._enabled and not self.console.is_terminal and done % max(1, total // 4) == 0:
                self.console.print(f"{name} {done}/{total}", soft_wrap=True, highlight=False)

        self._start(name, total)
        try:
            yield advance
        finally:
            self._end(name)

    # Validation and the reference pass

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the bar of a validation pass below that of the run."""
        total = _total(trainer.num_val_batches)
        self._start("val", total)
        if self._enabled and not self.console.is_terminal and not trainer.sanity_checking:
            self.console.print(f"validating on {total:g} batches", soft_wrap=True, highlight=False)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        self._move("val", batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Remove the bar."""
        self._end("val")
        if trainer.state.fn == "validate":
            self._stop()

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the bar of the pass that fills the reference cache."""
        self._start("reference", _total(trainer.num_predict_batches))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        self._move("reference", batch_idx + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the finished line on the screen."""
        self._stop()


class _TimeLeft(ProgressColumn):
    """Remaining time of a running task, total time of a finished one."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{clock(task.finished_time or 0)} total", style="dim")
        left = task.time_remaining
        return Text("  --:-- left" if left is None else f"{clock(left)} left", style="dim")


def redirect_handlers(old: TextIO, new: TextIO) -> None:
    """Redirect log handlers from one stream to another.

    While a line is drawn, standard error is a proxy that prints above it. Handlers created earlier hold the stream
    itself and would write into the line.
    """
    if old is new:
        return
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    for handler in {handler for logger in (logging.root, *loggers) for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.setStream(new)


def summary(metrics: Mapping[str, Tensor | float | str]) -> str:
    """Format the metrics of the line that exist."""
    online = PHASES[0][1] in metrics
    shown = SHOWN_ONLINE if online else SHOWN
    parts = [f"{label} {float(metrics[name]):{form}}" for label, name, form in shown if name in metrics]
    if online:
        total = sum(float(value) for name, value in metrics.items() if name.startswith("train/time/"))
        shares = [(label, float(metrics[name]) / max(total, 1e-9)) for label, name in PHASES if name in metrics]
        parts += [f"{label} {share:.0%}" for label, share in shares]
    elif SPEED in metrics:
        parts.append(f"{compact(float(metrics[SPEED]))} tok/s")
    return " ".join(parts)


def compact(number: float) -> str:
    """Format a number with three significant digits: 87.2, 1.23k, 45.6M."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            return f"{number / scale:#.3g}".rstrip(".") + unit
    return f"{number:#.3g}".rstrip(".")


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _total(batches: list[int | float]) -> float:
    return float(sum(batches))
