"""Metrics in a Weights & Biases run that has the job's id."""

from __future__ import annotations

import logging
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import loggers
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

#: Bytes of a block of W&B's files, and of what stands at the head of a file and of each part of a record.
_BLOCK, _HEAD, _PART = 32768, 7, 7
#: Lightning's name of the step.
_STEP = "trainer/global_step"


class WandbLogger(loggers.WandbLogger):
    """Lightning's W&B logger, for jobs that are resumed and for several jobs in one process.

    The W&B run has the job's id, so that a resumed job continues it, also where both parts were logged offline and are
    uploaded by ``wandb sync``. W&B cannot remove what was logged: a resumed job reads what its W&B files hold, and does
    not log that again. At the end of a job its W&B run is closed.

    Args:
        save_dir: folder of ``wandb/``.
        project: under which the runs lie.
        offline: whether nothing is sent; ``wandb sync <folder>`` does it afterwards.
        id: of the W&B run; None: the job's.
        log_model: whether checkpoints are uploaded; ``all``: each when it is written.
        prefix: of the metrics' names.
        init: further arguments of ``wandb.init``: ``name``, ``group``, ``tags``, ``entity`` ...
    """

    def __init__(
        self,
        save_dir: str,
        *,
        project: str = "rlhf-lightning",
        offline: bool = False,
        id: str | None = None,  # noqa: A002  W&B's name
        log_model: Literal["all"] | bool = False,
        prefix: str = "",
        **init: Any,
    ) -> None:
        names = {"save_dir": save_dir, "project": project, "offline": offline, "id": id, "prefix": prefix}
        self._options: dict[str, Any] = {**init, **names, "log_model": log_model}
        super().__init__(**self._options)
        self._logged: Mapping[str, set[int]] = {}  # steps that a resumed run has, by the metric's name

    def identify(self, run_id: str, *, resumed: bool) -> None:
        """Take the job's id, before anything is logged.

        Args:
            run_id: of the job, which is kept in its folder.
            resumed: whether it continues from a checkpoint.
        """
        self._options["id"] = self._options["id"] or run_id
        super().__init__(**self._options)
        if resumed:
            self._logged = logged(Path(self._options["save_dir"]), self._options["id"])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics of a step, but for those that the run has at this step."""
        left = {name: value for name, value in metrics.items() if step not in self._logged.get(self._named(name), ())}
        if left:
            super().log_metrics(left, step)

    @rank_zero_only
    def log_rows(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Log a table of a step."""
        import wandb

        self.log_metrics({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload what is left and close the W&B run."""
        super().finalize(status)
        import wandb

        if wandb.run is not None and wandb.run.id == self.version:
            wandb.run.finish(exit_code=0 if status == "success" else 1)

    def _named(self, metric: str) -> str:
        prefix = self._options["prefix"]
        return f"{prefix}{self.LOGGER_JOIN_CHAR}{metric}" if prefix else metric


def logged(folder: Path, run_id: str) -> Mapping[str, set[int]]:
    """Steps of every metric and table that a W&B run has in its files, by name.

    Args:
        folder: of ``wandb/``.
        run_id: of the W&B run.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    steps: dict[str, set[int]] = defaultdict(set)
    for file in sorted((folder / "wandb").glob(f"*run-*-{run_id}/run-{run_id}.wandb")):
        for data in records(file.read_bytes()):
            items = Record.FromString(data).history.item
            # A table is several items, whose keys begin with its name.
            values = {(list(item.nested_key) or [item.key])[0]: item.value_json for item in items}
            if _STEP in values:
                for name in values:
                    steps[name].add(int(values[_STEP]))
    return steps


def records(data: bytes) -> Iterator[bytes]:
    """Records of a W&B file, in LevelDB's log format behind a head; one that a kill has cut short is left out."""
    at, record = _HEAD, b""
    while at + _PART <= len(data):
        if (left := _BLOCK - at % _BLOCK) < _PART:  # too little for another part
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + _PART : at + _PART + size]
        at += _PART + size
        if at > len(data):
            return
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""
