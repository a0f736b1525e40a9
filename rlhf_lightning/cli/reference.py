"""``reference=cached``: the reference's log-probs, computed before training for the rows that no run has computed yet.

It is a pass of ``trainer.predict`` with the run's own strategy and precision, so a sharded model is sharded, and it
stops and resumes like everything else: what has been written stays. Jobs that start at the same moment pay for it once:
the first one holds the lock of the model's folder while it computes, the others wait and then find the rows. The lock
dies with its process, and what a killed process had written by then is not computed again.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.cli.agreement import check_seen
from rlhf_lightning.cli.build import callbacks_of
from rlhf_lightning.cli.results import duration
from rlhf_lightning.data.reference.store import ReferenceStore, ReferenceWriter
from rlhf_lightning.data.tokens.cache import default_folder
from rlhf_lightning.models.fingerprint import reference_fingerprint

if TYPE_CHECKING:
    from rlhf_lightning.cli.build import Run

log = logging.getLogger(__name__)

#: What passes have cost, one JSON object a pass, beside the shards that they wrote.
COSTS = "passes.jsonl"
#: The share of ``strategy.timeout`` for which a job of several processes waits for another job's pass: its own
#: processes wait for each other meanwhile. Then it computes the rows itself.
_PATIENCE = 0.5


def fill_reference_cache(run: Run) -> None:
    """Compute what is missing, give the data module its store, and note in ``run.reference`` what it cost and saved."""
    source = _MissingRows(run)
    writer = _WriteLogProbs(source)
    callbacks_of(run.trainer).append(writer)
    try:
        run.trainer.predict(run.module, datamodule=source, return_predictions=False)
        assert source.store is not None
        source.store.refresh()
        run.data.reference_store = source.store  # waits until every process has written its share
        if run.module.reference is not None:
            run.module.reference.fingerprint = source.store.fingerprint
    finally:
        source.release()
        callbacks_of(run.trainer).remove(writer)
    run.reference = source.account(writer.seconds)


class _MissingRows(L.LightningDataModule):
    """The rows that the store lacks; the store's name needs the weights, which are there when Lightning asks."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.store: ReferenceStore | None = None
        self.missing, self.missing_tokens = 0, 0
        self._lock: FileLock | None = None

    def predict_dataloader(self) -> Any:
        """Open the store of the loaded model and list what it lacks."""
        trainer, module = self.run.trainer, self.run.module
        self.run.data.trainer = trainer
        fingerprint = reference_fingerprint(module.policy, precision=str(trainer.precision))
        self.store = ReferenceStore(default_folder() / "reference", fingerprint)
        check_seen(trainer, self.store.path, "RLHF_CACHE: the reference store")
        if trainer.is_global_zero and self._count():
            self._lock = _locked(
                self.store.path / ".lock", None if trainer.world_size == 1 else _PATIENCE * self.run.timeout
            )
            if not self._count():
                self.release()
        loader = self.run.data.reference_loader(self.store)
        if trainer.is_global_zero and self.missing:
            log.info("%-9s %d rows to compute, kept in %s", "reference", self.missing, self.store.path)
        return loader

    def _count(self) -> int:
        """Look at what the store lacks now."""
        assert self.store is not None
        absent = [(part, self.store.missing(part)) for part in self.run.data.reference_parts()]
        self.missing = sum(len(groups) for _, groups in absent)
        self.missing_tokens = int(sum(part.lengths[groups].sum() for part, groups in absent))
        return self.missing

    def release(self) -> None:
        """Let other jobs in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def account(self, seconds: float) -> dict[str, float]:
        """Rows computed and reused by the pass, and seconds taken and saved; only on the first process."""
        if not self.run.trainer.is_global_zero:
            return {}
        assert self.store is not None
        rows = sum(len(part) for part in self.run.data.reference_parts())
        cached_tokens = int(sum(part.lengths.sum() for part in self.run.data.reference_parts())) - self.missing_tokens
        costs = self.store.path / COSTS
        if self.missing:
            _note(costs, {"rows": self.missing, "tokens": self.missing_tokens, "seconds": round(seconds, 3)})
            log.info("%-9s %d rows computed in %s", "reference", self.missing, duration(seconds))
        saved = cached_tokens * seconds_a_token(costs)
        if rows > self.missing:
            about = f", ~{duration(saved)} saved" if saved else ""
            log.info("%-9s %d rows from the cache%s", "reference", rows - self.missing, about)
        total_seconds = round(seconds, 3)
        return {
            "computed": self.missing,
            "cached": rows - self.missing,
            "seconds": total_seconds,
            "saved": round(saved, 3),
        }


class _WriteLogProbs(Callback):
    """Writes each batch's log-probs into the store as it comes."""

    def __init__(self, source: _MissingRows) -> None:
        self.source = source
        self.writer: ReferenceWriter | None = None
        self.seconds = 0.0  #: of the pass, without loading the model
        self._started = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take a batch."""
        assert self.source.store is not None
        self.writer = self.writer or ReferenceWriter(self.source.store)
        self.writer.put(batch, outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rest."""
        self._flush()
        self.seconds = time.perf_counter() - self._started

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was computed."""
        self._flush()

    def _flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()


def seconds_a_token(costs: Path) -> float:
    """Average seconds per token of this model's reference pass; 0 if unknown."""
    total: dict[str, float] = {"tokens": 0.0, "seconds": 0.0}
    for line in costs.read_text().splitlines() if costs.exists() else ():
        try:
            cost = json.loads(line)
            total = {name: number + float(cost[name]) for name, number in total.items()}
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    return total["seconds"] / total["tokens"] if total["tokens"] else 0.0


def _note(costs: Path, cost: dict[str, float]) -> None:
    """Add a line; a line begins on its own, whatever a killed process left before it."""
    with costs.open("a") as file:
        file.write(f"\n{json.dumps(cost)}\n")


def _locked(path: Path, patience: float | None) -> FileLock:
    """The lock of a store, waited for while another job computes; not held when patience ran out.

    Args:
        path: of the lock's file.
        patience: seconds to wait; None: as long as its holder lives.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.info("%-9s another job is computing it; waiting", "reference")
        try:
            lock.acquire(timeout=-1 if patience is None else patience)
        except Timeout:
            log.warning("reference: another job has not finished in %s; computing here too", duration(patience or 0))
    return lock
