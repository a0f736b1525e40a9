"""``rlhf train``: one job, from a composed configuration to a trained model."""

from __future__ import annotations

import json
import logging
import math
import time
from datetime import datetime
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from rlhf_lightning import clock
from rlhf_lightning.callbacks import LastCheckpoint
from rlhf_lightning.cli.agreement import (
    agreed,
    check_files_exist,
    check_readable,
    check_same,
    check_same_job,
    check_seen,
    meet,
)
from rlhf_lightning.cli.announce import ModelLine, describe_run
from rlhf_lightning.cli.build import Run, callbacks_of, checkpoint_to_resume, make_run
from rlhf_lightning.cli.card import write_cards
from rlhf_lightning.cli.console import ERR
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.folder import RunFolder, held, write_config
from rlhf_lightning.cli.hyperparameters import begin_logging
from rlhf_lightning.cli.identity import digest_of, file_contents
from rlhf_lightning.cli.metrics import check_logged, check_reached
from rlhf_lightning.cli.processes import is_first_process, join_job, several_commands
from rlhf_lightning.cli.progress import Progress
from rlhf_lightning.cli.results import FILE, Result, duration, short
from rlhf_lightning.cli.versions import versions

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train as a configuration of :func:`rlhf_lightning.compose` says.

    The data is tokenised and checked before any weight is loaded. The folder ``paths.output_dir`` (one is made when it
    is null) receives the resolved configuration, metrics, checkpoints and ``result.json``.

    Args:
        cfg: from ``compose("train", overrides)``. Its ``paths.output_dir`` is filled in.

    Returns:
        The last value of ``optimized_metric``, what a sweeper optimises; None without one.

    Raises:
        ConfigError, ValueError: options or data that cannot be used; nothing large was loaded by then.
    """
    started = time.perf_counter()
    path = prepare(cfg, "train")
    with held(path):
        folder = RunFolder(cfg)
        folder.check()
        if not several_commands(cfg.get("strategy")) and (before := folder.finished) is not None:
            return nothing_left(cfg, before)
        if not folder.occupied and is_first_process():
            write_config(cfg, path)
        return _train(cfg, folder, started)


def _train(cfg: DictConfig, folder: RunFolder, started: float) -> float | None:
    """Train in a folder that is this process's, as far as small files can say."""
    before = Result.read(folder.path)
    check_logged(cfg.optimized_metric, cfg.callbacks)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    run = make_run(cfg)
    callbacks_of(run.trainer).extend([ModelLine(run), OptimizedMetric(cfg.optimized_metric)])
    meet(run.trainer, run.module)
    check_seen(run.trainer, folder.path, "paths.output_dir")
    check_same_job(cfg)
    before, checkpoint = agreed(run.trainer, (before, _checkpoint(cfg, run, folder)))
    check_files_exist(run.trainer, [Path(path) for path in (checkpoint, folder.start) if path is not None])
    check_readable(run.trainer, checkpoint)
    progress = None if checkpoint is None else Progress.read(Path(checkpoint))
    if progress is not None:
        progress.check(run.trainer)
        if before is not None and before.status == "done" and progress.finished(run.trainer):
            return nothing_left(cfg, before)
    run.data.setup("fit")
    content = run.data.content() | file_contents(cfg)
    content |= {} if folder.start is None else {"ckpt_path": digest_of(folder.start)}
    check_same(run.trainer, content)
    folder.check_content(content)
    if (cfg.optimized_metric or "").startswith("val/"):
        check_reached(cfg.optimized_metric, run.trainer, len(run.data.train_dataloader()))
    if run.trainer.is_global_zero:
        run_id = folder.accept(content, None if progress is None else progress.steps)
        begin_logging(cfg, run.trainer, run_id, resumed=progress is not None)
        (folder.path / FILE).unlink(missing_ok=True)  # so that it never outlives a run that is killed
    write_reports(run)
    describe_run(cfg, run, checkpoint)
    if run.models.reference == "cached":
        from rlhf_lightning.cli.reference import fill_reference_cache

        fill_reference_cache(run)
    try:
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint)
        return finish(cfg, run, time.perf_counter() - started)
    except BaseException:  # a signal, Ctrl-C or a failure: what was reached by then belongs into the result
        unfinished(cfg, run, progress, before)
        raise


def _checkpoint(cfg: DictConfig, run: Run, folder: RunFolder) -> str | None:
    """The checkpoint that the run is resumed from."""
    return checkpoint_to_resume(run.trainer, None if folder.from_scratch else cfg.ckpt_path, folder.path)


def prepare(cfg: DictConfig, command: str) -> Path:
    """Give the run its folder, which is made where it has no name, and its date.

    Raises:
        ConfigError: the job has not the processes that it asks for.
    """
    join_job(cfg.get("strategy"))
    if cfg.paths.output_dir is None:
        cfg.paths.output_dir = str(new_folder(Path(cfg.paths.runs) / command))
    folder = Path(cfg.paths.output_dir).expanduser().absolute()
    cfg.paths.output_dir = str(folder)
    if cfg.get("run"):  # what an evaluated run was shown is what its model knows
        clock.take_over(Path(cfg.run).expanduser())
    else:
        clock.begin(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def nothing_left(cfg: DictConfig, before: Result) -> float | None:
    """Leave a finished run as it is, its log included.

    Returns:
        The metric that is optimised now, as the run logged it last.
    """
    if is_first_process():
        ERR.print(
            f"nothing was left to do after step {before.steps}: raise trainer.max_epochs or trainer.max_steps to train "
            "longer, or run it from scratch with rerun=true",
            markup=False,
        )
    return optimized(before.metrics, cfg.optimized_metric)


def write_reports(run: Run) -> None:
    """Keep the counts of every row that was kept, left out or noted, as ``data.json``."""
    if run.trainer.is_global_zero:
        reports = {role: report.to_dict() for role, report in run.data.reports.items()}
        text = json.dumps(reports, indent=2, ensure_ascii=False) + "\n"
        (run.folder / "data.json").write_text(text, encoding="utf-8")


def finish(cfg: DictConfig, run: Run, seconds: float) -> float | None:
    """Write ``result.json`` and say where everything is.

    Args:
        cfg: of the run.
        run: after fitting.
        seconds: that it took.
    """
    metrics = metrics_of(run)
    value = optimized(metrics, cfg.optimized_metric)
    result = Result(
        "done",
        cfg.optimized_metric,
        value,
        metrics,
        run.trainer.global_step,
        round(seconds, 2),
        versions=versions(),
        reference=run.reference,
    )
    if run.trainer.is_global_zero:
        result.write(run.folder)
        write_cards(run.folder)
        log.info("done in %s, results in %s", duration(seconds), short(run.folder))
    return value


def unfinished(cfg: DictConfig, run: Run, progress: Progress | None, before: Result | None) -> None:
    """Write how far a run came; whoever called it adds how it ended.

    Args:
        cfg: of the run.
        run: however far it came.
        progress: of the checkpoint that it resumed; None: none.
        before: the result that the folder held before.
    """
    if not run.trainer.is_global_zero:
        return
    metrics, resumed = metrics_of(run), 0 if progress is None else progress.steps
    if progress is not None and before is not None and not metrics:
        metrics = before.metrics  # it did not get as far as to load the checkpoint
    saved = [callback.saved_step for callback in callbacks_of(run.trainer) if isinstance(callback, LastCheckpoint)]
    steps = max(run.trainer.global_step, resumed)
    result = Result("stopped", cfg.optimized_metric, None, metrics, steps, versions=versions())
    result.reference, result.saved = run.reference, max([resumed, *saved])
    result.write(run.folder)


def metrics_of(run: Run) -> dict[str, float]:
    """The last of everything that the run logged, also before it was resumed, by name.

    What a sanity check of the untrained policy left behind is no result.
    """
    if not run.trainer.global_step:
        return {}
    return {name: float(value) for name, value in sorted(run.trainer.callback_metrics.items())}


class OptimizedMetric(L.Callback):
    """Ends a run whose first validation does not log the metric that it is to return, before it trains to the end.

    Args:
        name: ``optimized_metric``.
    """

    def __init__(self, name: str | None) -> None:
        self.name = name

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look for it.

        Raises:
            ConfigError: it is a metric of validations, and was not logged.
        """
        if not trainer.sanity_checking and (self.name or "").startswith("val/"):
            optimized({name: float(value) for name, value in trainer.callback_metrics.items()}, self.name)


def optimized(metrics: dict[str, float], name: str | None) -> float | None:
    """The metric that the run returns.

    Raises:
        ConfigError: nothing of that name was logged.
    """
    if name is None:
        return None
    if name not in metrics:
        if name.startswith("val/") and not any(metric.startswith("val/") for metric in metrics):
            raise ConfigError(
                f"optimized_metric={name} was not logged, since the run ended before its first validation: set "
                "trainer.val_check_interval or trainer.check_val_every_n_epoch so that one takes place"
            )
        raise ConfigError(f"optimized_metric={name} was not logged.{suggestion(name, metrics)}")
    value: float | None = metrics[name]  # null in a file says that it is not finite
    return value if value is not None and math.isfinite(value) else math.nan


def new_folder(parent: Path) -> Path:
    """A folder named after the time that no other run has taken."""
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number in range(1000):
        folder = parent / (f"{stem}_{number}" if number else stem)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"{parent} is full of runs of this very second; set paths.output_dir")
