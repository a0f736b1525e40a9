"""Metrics as a CSV file that survives a resumed run."""

from __future__ import annotations

import csv
import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.files import remove, sync, write_atomically

log = logging.getLogger(__name__)


class CSVLogger(Logger):
    """One row a logged step in ``<save_dir>/metrics.csv``; a metric that a step lacks is an empty cell.

    The file belongs to the run's checkpoints: each holds :meth:`position`, and a run that is resumed from it continues
    the file from there, so that at the end it has the bytes of an unbroken run's. A run that begins replaces the file.

    Args:
        save_dir: folder of the file.
        file: its name.
    """

    def __init__(self, save_dir: str, file: str = "metrics.csv") -> None:
        super().__init__()
        self.path = Path(save_dir) / file
        self._columns: list[str] = []
        self._rows = 0  # of this run in the file
        self._pending: dict[str, Any] = {}  # the row of the latest step, which may still grow

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
        self._pending |= {"step": step, **{name: float(value) for name, value in metrics.items() if name != "step"}}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        if self._pending:
            self._write()

    # Checkpoints

    def position(self) -> dict[str, Any]:
        """Return where the file stands, for a checkpoint, once the disk has what the file holds."""
        if self._rows and self.path.exists():
            sync(self.path)
        return {"rows": self._rows, "columns": list(self._columns), "pending": dict(self._pending)}

    @rank_zero_only
    def rewind(self, position: Mapping[str, Any] | None, step: int) -> None:
        """Cut the file back to a checkpoint.

        Args:
            position: of :meth:`position`; None: the checkpoint has none, and the rows of its steps are kept.
            step: optimiser steps behind the checkpoint.
        """
        rows = read_metrics(self.path) if self.path.exists() else []
        if position is None:
            kept = [row for row in rows if int(float(row["step"])) < step]
            log.info("the checkpoint does not say where %s stood: the %d rows before its step", self.path, len(kept))
            position = {"rows": len(kept), "columns": list(rows[0]) if kept else [], "pending": {}}
        if len(rows) < position["rows"]:
            log.warning("%s has %d of the %d rows before the checkpoint", self.path, len(rows), position["rows"])
        self._columns, self._pending = list(position["columns"]), dict(position["pending"])
        self._rewrite(rows[: position["rows"]])

    # The file

    def _write(self) -> None:
        row, self._pending = self._pending, {}
        new = [name for name in row if name not in self._columns]
        if new or not self._rows:
            rows = read_metrics(self.path)[: self._rows] if self._rows else []
            # "step" stays first, the others are in the order of the alphabet.
            self._columns = ["step", *sorted({*self._columns, *new} - {"step"})]
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)
        self._rows += 1

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._rows = len(rows)
        if not self._columns:
            remove(self.path)
            return

        def write(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.path, write)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics file; a last line that a kill has cut short is left out."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row.get("step")]
