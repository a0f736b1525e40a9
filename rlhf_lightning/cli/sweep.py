"""The end of a sweep: one table of all jobs on the terminal and in ``multirun.csv``."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from rlhf_lightning import clock
from rlhf_lightning.cli.console import ERR, OUT, say
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.identity import digest
from rlhf_lightning.cli.results import FILE, Result, duration, short
from rlhf_lightning.report.metrics import shown

FILE_OF_SWEEP = "sweep.json"
#: Set while a sweep runs, to the keys that vary; the processes of its jobs inherit it.
SWEEP = "RLHF_SWEEP"
#: Metrics of the terminal's table; multirun.csv has all.
_COLUMNS = 4


class SweepSummary(Callback):
    """Gathers the jobs' ``result.json`` when a sweep ends, whichever launcher ran them."""

    exit_code: ClassVar[int] = 0  #: of this process; a sweep with a failed job ends with 1
    key: ClassVar[str | None] = None  #: what the sweep computes, see :func:`prepare_sweep`
    resumed_folder: ClassVar[Path | None] = None  #: the folder of an earlier sweep of the same key
    folder: ClassVar[Path | None] = None  #: of the sweep that this process launched
    trained: ClassVar[Path | None] = None  #: folder of the single job that this process trained to its end

    def __init__(self) -> None:
        self._started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in the process that launches the sweep."""
        self._started = time.time()
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        type(self).folder = folder
        for path in folder.iterdir():
            if path.is_symlink() and not path.exists():  # led to a job that was deleted since
                path.unlink()
        os.environ[clock.VARIABLE] = clock.begin(folder).isoformat()  # one date for all jobs that begin here
        (folder / FILE_OF_SWEEP).write_text(json.dumps({"key": type(self).key}) + "\n")
        if type(self).resumed_folder is not None:
            say(f"this sweep was begun in {short(folder)} and is resumed there (rerun=true starts from scratch)")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra in the process that launched the sweep."""
        folder = Path(config.hydra.sweep.dir)
        jobs = gather(folder)
        if not jobs:
            return
        write_csv(jobs, folder / "multirun.csv")
        OUT.print(table(jobs))
        for line in self._notes(folder, jobs):
            OUT.print(line)
        OUT.print(f"{short(folder / 'multirun.csv')} has every metric")
        failed = [name for name, result in jobs.items() if result.status != "done"]
        if failed:
            ERR.print(f"[bold red]{len(failed)} of {len(jobs)} jobs failed:[/] {', '.join(failed)}")
        type(self).exit_code = 1 if failed else 0

    @classmethod
    def why_no_value(cls) -> str | None:
        """Explain why an optimising sweep has no value of any job; None if one has a value, or none was run."""
        jobs = {} if cls.folder is None else gather(cls.folder)
        metrics = {result.optimized_metric for result in jobs.values()} - {None}
        if not jobs or any(result.value is not None for result in jobs.values()):
            return None
        name, first = next(iter(jobs.items()))
        names = ", ".join(sorted(str(metric) for metric in metrics)) or "the metric"
        reason = first.error or f"it was not finite (status {first.status})"
        return f"none of the {len(jobs)} jobs gave a value of {names} to optimise; job {name}: {reason}"

    def _notes(self, folder: Path, jobs: dict[str, Result]) -> Iterator[str]:
        """Jobs that were not computed again."""
        old = [name for name in jobs if (folder / name / FILE).stat().st_mtime < self._started]
        if old:
            saved = duration(sum(jobs[name].seconds for name in old))
            yield f"{len(old)} of {len(jobs)} jobs were done before ({saved} saved): {', '.join(old)}"
        passes = [result.reference for name, result in jobs.items() if name not in old and result.reference]
        if passes:
            computed, cached = (sum(int(one[part]) for one in passes) for part in ("computed", "cached"))
            seconds, saved = (duration(sum(one[part] for one in passes)) for part in ("seconds", "saved"))
            yield f"reference pass: {computed} rows computed in {seconds}, {cached} from the cache, ~{saved} saved"


def prepare_sweep(cfg: DictConfig, command: str, overrides: Sequence[str]) -> None:
    """Before Hydra starts: recognise an earlier sweep of the same command, and divide the cores among parallel jobs.

    Args:
        cfg: of the sweep's first job, with Hydra's node.
        command: ``train`` or ``evaluate``.
        overrides: the user's.
    """
    kept = [line for line in overrides if not line.startswith(("hydra", "paths.", "rerun="))]
    params = OmegaConf.to_container(OmegaConf.select(cfg, "hydra.sweeper.params") or OmegaConf.create({}))
    parts = json.dumps([command, digest(cfg), kept, params], sort_keys=True, default=str)
    SweepSummary.key = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    SweepSummary.resumed_folder = None
    named = cfg.paths.output_dir is not None or any(line.startswith("hydra.sweep.dir=") for line in overrides)
    if command == "train" and not named and not cfg.rerun:
        SweepSummary.resumed_folder = _earlier(Path(cfg.paths.sweeps), SweepSummary.key)
    _check_optimizer(cfg)
    share_cores(int(OmegaConf.select(cfg, "hydra.launcher.n_jobs") or 1))


def _check_optimizer(cfg: DictConfig) -> None:
    """Refuse an optimising sweep of jobs that return nothing to optimise."""
    sweeper = str(OmegaConf.select(cfg, "hydra.sweeper._target_") or "")
    if cfg.optimized_metric is None and "optuna" in sweeper:
        raise ConfigError(
            "Optuna optimises optimized_metric, which is null: set it to what a run logs, such as "
            "optimized_metric=val/reward/accuracy"
        )


def share_cores(jobs: int) -> None:
    """Give each of several jobs at once its share of this machine's cores, unless the user has set the variables.

    Threads that wait do so asleep: by default OpenMP's spin, which takes the core from the job beside.

    Args:
        jobs: that run at once; negative counts back from the number of cores, as joblib does.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = jobs if jobs > 0 else max(cores + 1 + jobs, 1)
    if at_once > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // at_once, 1)))
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.setdefault("GOMP_SPINCOUNT", "0")


def _earlier(sweeps: Path, key: str) -> Path | None:
    """The newest sweep of a key."""
    files = sorted(sweeps.glob(f"*/{FILE_OF_SWEEP}"), key=lambda file: file.stat().st_mtime)
    return next((file.parent for file in reversed(files) if _key_of(file) == key), None)


def _key_of(file: Path) -> str | None:
    try:
        recorded_key = json.loads(file.read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(recorded_key)


def gather(folder: Path) -> dict[str, Result]:
    """Results of a sweep's jobs by the name of their folder, in the order of the jobs."""
    files = {*folder.rglob(FILE), *folder.glob(f"*/{FILE}")}  # the second follows the links to jobs of other sweeps
    results = {path.parent.relative_to(folder).as_posix(): Result.read(path.parent) for path in files}
    return {name: results[name] for name in sorted(results, key=_natural) if results[name] is not None}  # type: ignore[misc]


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
    columns = shown(logged, _COLUMNS, sorted(optimized))
    drawn = Table(title=f"{len(jobs)} jobs", title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in ["job", *keys, "status", "time"]:
        drawn.add_column(name, justify="right" if name == "time" else "left")
    for name in columns:
        head, slash, tail = name.rpartition("/")  # on two lines, so that more columns fit
        drawn.add_column(f"{head}{slash}\n{tail}", justify="right")
    for name, result in jobs.items():
        status = "done" if result.status == "done" else f"[red]{result.status}[/]"
        numbers = [_number(result.metrics.get(metric)) for metric in columns]
        drawn.add_row(name, *options[name].values(), status, duration(result.seconds), *numbers)
    return drawn


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (1 << 62, name)
