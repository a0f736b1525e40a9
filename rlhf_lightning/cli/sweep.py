"""The end of a sweep: one table of all jobs on the terminal and in ``multirun.csv``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from rlhf_lightning.cli.console import ERR, OUT
from rlhf_lightning.cli.results import FILE, Result, duration

#: Metrics of the terminal's table, best first; multirun.csv has all.
_SHOWN = (
    "val/loss",
    "val/reward/accuracy",
    "val/reward/margin",
    "val/kl/reference",
    "train/loss",
    "train/reward/accuracy",
    "train/reward/margin",
)
_COLUMNS = 4


class SweepSummary(Callback):
    """Gathers the jobs' ``result.json`` when a sweep ends, whichever launcher ran them."""

    exit_code: ClassVar[int] = 0  #: of this process; a sweep with a failed job ends with 1

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in the process that launched the sweep."""
        folder = Path(config.hydra.sweep.dir)
        jobs = gather(folder)
        if not jobs:
            return
        write_csv(jobs, folder / "multirun.csv")
        OUT.print(table(jobs))
        OUT.print(f"{folder / 'multirun.csv'} has every metric")
        failed = [name for name, result in jobs.items() if result.status != "done"]
        if failed:
            ERR.print(f"[bold red]{len(failed)} of {len(jobs)} jobs failed:[/] {', '.join(failed)}")
        type(self).exit_code = 1 if failed else 0


def gather(folder: Path) -> dict[str, Result]:
    """Results of a sweep's jobs by the name of their folder, in the order of the jobs."""
    found = {path.parent.relative_to(folder).as_posix(): Result.read(path.parent) for path in folder.rglob(FILE)}
    return {name: found[name] for name in sorted(found, key=_natural) if found[name] is not None}  # type: ignore[misc]


def varying(jobs: dict[str, Result]) -> dict[str, dict[str, str]]:
    """Of each job, the overrides that not all jobs share."""
    parsed = {
        name: dict(override.lstrip("+").split("=", 1) for override in result.overrides if "=" in override)
        for name, result in jobs.items()
    }
    keys = list(dict.fromkeys(key for options in parsed.values() for key in options))
    differing = [key for key in keys if len({options.get(key) for options in parsed.values()}) > 1]
    return {name: {key: options.get(key, "") for key in differing} for name, options in parsed.items()}


def write_csv(jobs: dict[str, Result], file: Path) -> None:
    """Every job and metric, one row a job."""
    options = varying(jobs)
    metrics = sorted({metric for result in jobs.values() for metric in result.metrics})
    keys = list(next(iter(options.values())))
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["job", *keys, "status", "seconds", "steps", "value", *metrics, "error"])
        for name, result in jobs.items():
            row = [name, *options[name].values(), result.status, result.seconds, result.steps, result.value]
            writer.writerow([*row, *(result.metrics.get(metric) for metric in metrics), result.error])


def table(jobs: dict[str, Result]) -> Table:
    """The table of a sweep; the best value of the optimised metric is not marked: only the sweeper knows which way."""
    options = varying(jobs)
    keys = list(next(iter(options.values())))
    logged = {metric for result in jobs.values() for metric in result.metrics}
    optimized = {result.optimized_metric for result in jobs.values() if result.optimized_metric}
    shown = [*sorted(optimized & logged), *(name for name in _SHOWN if name in logged and name not in optimized)]
    shown = shown[:_COLUMNS]
    drawn = Table(title=f"{len(jobs)} jobs", title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in ["job", *keys, "status", "time"]:
        drawn.add_column(name, justify="right" if name == "time" else "left")
    for name in shown:
        head, slash, tail = name.rpartition("/")  # on two lines, so that more columns fit
        drawn.add_column(f"{head}{slash}\n{tail}", justify="right")
    for name, result in jobs.items():
        status = "done" if result.status == "done" else f"[red]{result.status}[/]"
        numbers = [_number(result.metrics.get(metric)) for metric in shown]
        drawn.add_row(name, *options[name].values(), status, duration(result.seconds), *numbers)
    return drawn


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 62, name)
