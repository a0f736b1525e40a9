"""Metrics in an MLflow database that jobs share, one MLflow run a job."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_only

#: Tag of the MLflow run that says which job of ours it is.
TAG = "rlhf.run_id"


class MLFlowLogger(loggers.MLFlowLogger):
    """Lightning's MLflow logger, for a database that jobs of a sweep share and for jobs that are resumed.

    MLflow makes and migrates the tables of a new SQLite file without regard to other processes that do the same, and
    two that create an experiment of one name collide. Here they wait for one another.

    A resumed job continues its MLflow run, which is recognised by the tag ``rlhf.run_id``. MLflow cannot remove what
    was logged, so metrics that the run already has at a step are left as they are.

    Args:
        tracking_uri: ``sqlite:///<file>``, whose folder is made, or a server's address.
        experiment_name: under which the runs of a project lie.
        run_name: None: MLflow's own.
        tags: of the run.
        log_model: whether checkpoints are copied to the artifacts; ``all``: each when it is written.
        prefix: of the metrics' names.
        artifact_location: folder or address of the experiment's artifacts; None: the server's, or ``./mlruns``.
        run_id: of an earlier MLflow run to continue.
        synchronous: whether logging waits for the database; None: MLflow's default.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        experiment_name: str = "rlhf-lightning",
        run_name: str | None = None,
        tags: dict[str, Any] | None = None,
        log_model: Literal[True, False, "all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "tracking_uri": tracking_uri,
            "experiment_name": experiment_name,
            "run_name": run_name,
            "tags": tags,
            "log_model": log_model,
            "prefix": prefix,
            "artifact_location": artifact_location,
            "run_id": run_id,
            "synchronous": synchronous,
        }
        _, _, file = tracking_uri.partition("sqlite:///")
        self._alone: AbstractContextManager[Any] = nullcontext()
        self._begun = False
        self._logged: dict[str, set[int]] = {}  # steps that a resumed run has, by the metric's name
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            self._alone = FileLock(f"{file}.lock")
        with self._alone:
            super().__init__(**self._options)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The MLflow client; the first access creates experiment and run."""
        with nullcontext() if self._begun else self._alone:
            client = super().experiment
        self._begun = True
        return client

    def identify(self, run_id: str, *, resumed: bool) -> None:
        """Take the job's id, before anything is logged.

        Args:
            run_id: of the job, which is kept in its folder.
            resumed: whether it continues from a checkpoint, and with it the MLflow run that carries its id.
        """
        self._options["tags"] = {**(self._options["tags"] or {}), TAG: run_id}
        with self._alone:
            if resumed:
                self._resume(run_id)
            super().__init__(**self._options)

    def _resume(self, run_id: str) -> None:
        """Find the job's MLflow run and the steps that it has; none where the database has no such run."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self._options["tracking_uri"])
        experiment = client.get_experiment_by_name(self._options["experiment_name"])
        if self._options["run_id"] is None and experiment is not None:
            runs = client.search_runs([experiment.experiment_id], f"tags.`{TAG}` = '{run_id}'", max_results=1)
            self._options["run_id"] = runs[0].info.run_id if runs else None
        if (present := self._options["run_id"]) is not None:
            for name in client.get_run(present).data.metrics:
                self._logged[name] = {metric.step for metric in client.get_metric_history(present, name)}
            client.update_run(present, status="RUNNING")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log parameters; those that a resumed run has stay as they are, since MLflow refuses other values."""
        given = vars(params) if isinstance(params, Namespace) else dict(params)
        present = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({name: value for name, value in given.items() if name not in present})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of a step, but for those that the run has at this step."""
        at = step or 0
        left = {name: value for name, value in metrics.items() if at not in self._logged.get(self._logged_as(name), ())}
        if left:
            super().log_metrics(left, step)

    def _logged_as(self, metric: str) -> str:
        """Name of a metric in the database: with the prefix, and without the characters that MLflow refuses."""
        prefix = self._options["prefix"]
        return re.sub("[^a-zA-Z0-9_/. -]+", "", f"{prefix}{self.LOGGER_JOIN_CHAR}{metric}" if prefix else metric)
