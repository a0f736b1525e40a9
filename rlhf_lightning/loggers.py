"""Metrics as a CSV file that survives a resumed run, and in an MLflow database that jobs share."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_only


class CSVLogger(Logger):
    """One row a logged step in ``<save_dir>/metrics.csv``; a metric that a step lacks is an empty cell.

    Lightning's logger of this name deletes the file when a run goes on. This one keeps it and drops only the rows of
    steps that are taken again.

    Args:
        save_dir: folder of the file.
        file: its name.
    """

    def __init__(self, save_dir: str, file: str = "metrics.csv") -> None:
        super().__init__()
        self.path = Path(save_dir) / file
        self._columns: list[str] = []
        self._pending: dict[str, Any] = {}
        self._started = False

    @property
    def name(self) -> str:
        """Nothing: the run's folder is the name."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the run's folder is the version."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's folder has its whole configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take the metrics of a step; those of the same step share a row."""
        step = 0 if step is None else step
        if self._pending and self._pending["step"] != step:
            self._write()
        if not self._started:
            self._begin(step)
        self._pending |= {"step": step, **{name: float(value) for name, value in metrics.items() if name != "step"}}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        if self._pending:
            self._write()

    def _begin(self, step: int) -> None:
        """Keep what an earlier part of the run wrote about the steps before this one."""
        self._started = True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            rows = read_metrics(self.path)
            self._columns = list(rows[0]) if rows else []
            self._rewrite([row for row in rows if int(float(row["step"] or 0)) < step])

    def _write(self) -> None:
        row, self._pending = self._pending, {}
        if new := [name for name in row if name not in self._columns]:
            rows = read_metrics(self.path) if self.path.exists() else []
            # "step" stays first, the others are in the order of the alphabet.
            self._columns = ["step", *sorted({*self._columns, *new} - {"step"})]
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if not self._columns:
            return
        temporary = self.path.with_name(f".{self.path.name}.unfinished")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


class MLFlowLogger(loggers.MLFlowLogger):
    """Lightning's MLflow logger, for a database that jobs of a sweep share.

    MLflow makes and migrates the tables of a new SQLite file without regard to other processes that do the same, and
    two that create an experiment of one name collide. Here they wait for one another.

    Args:
        tracking_uri: ``sqlite:///<file>``, whose folder is made, or a server's address.
        experiment_name: under which the runs of a project lie.
        run_name: None: MLflow's own.
        tags: of the run.
        log_model: whether checkpoints are copied to the artifacts; ``all``: each when it is written.
        prefix: of the metrics' names.
        artifact_location: folder or address of the experiment's artifacts; None: the server's, or ``./mlruns``.
        run_id: of an earlier run to go on with.
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
        _, _, file = tracking_uri.partition("sqlite:///")
        self._alone: AbstractContextManager[Any] = nullcontext()
        self._begun = False
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            self._alone = FileLock(f"{file}.lock")
        with self._alone:
            super().__init__(
                tracking_uri=tracking_uri,
                experiment_name=experiment_name,
                run_name=run_name,
                tags=tags,
                log_model=log_model,
                prefix=prefix,
                artifact_location=artifact_location,
                run_id=run_id,
                synchronous=synchronous,
            )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The MLflow client; the first access creates experiment and run."""
        with nullcontext() if self._begun else self._alone:
            client = super().experiment
        self._begun = True
        return client


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics file; a last line that a kill has cut short is left out."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row.get("step")]
