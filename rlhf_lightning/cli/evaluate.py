"""``rlhf evaluate``: a run, a checkpoint or a model on held-out data, with the metrics of any method."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import lightning as L
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.announce import describe_run
from rlhf_lightning.cli.build import make_run
from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.train import optimized, prepare
from rlhf_lightning.cli.versions import versions

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> float | None:
    """Score the validation data of a configuration.

    Args:
        cfg: from ``compose("evaluate", overrides)``; to go on from a run, through
            :func:`rlhf_lightning.cli.runs.from_run`.

    Returns:
        The value of ``optimized_metric``; None without one.
    """
    started = time.perf_counter()
    prepare(cfg, "evaluate")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    run = make_run(cfg)
    run.data.setup("validate")
    checkpoint = _checkpoint(cfg)
    describe_run(cfg, run, checkpoint)
    if run.models.reference == "cached":
        from rlhf_lightning.cli.reference import fill_reference_cache

        fill_reference_cache(run)
    run.trainer.validate(run.module, datamodule=run.data, ckpt_path=checkpoint, verbose=False)
    metrics = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    value = optimized(metrics, cfg.optimized_metric)
    result = Result("done", cfg.optimized_metric, value, metrics, 0, round(time.perf_counter() - started, 2))
    result.versions = versions()
    if run.trainer.is_global_zero:
        result.write(run.folder)
        show(metrics)
    return value


def show(metrics: dict[str, float]) -> None:
    """Print metrics as a table on standard output."""
    width = max(map(len, metrics), default=0)
    for name, value in sorted(metrics.items()):
        say(f"{name:<{width}}  {value:.6g}")


def _checkpoint(cfg: DictConfig) -> str | None:
    path = OmegaConf.select(cfg, "ckpt_path")
    return None if path is None else str(Path(path).expanduser())
