"""``reference=cached``: the reference's log-probs, computed before training for the rows that no run has computed yet.

It is a pass of ``trainer.predict`` with the run's own strategy and precision, so a sharded model is sharded, and it
stops and goes on like everything else: what has been written stays.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.cli.build import callbacks_of
from rlhf_lightning.data.cache import default_folder
from rlhf_lightning.data.reference_store import ReferenceStore, ReferenceWriter
from rlhf_lightning.models.fingerprint import reference_fingerprint

if TYPE_CHECKING:
    from rlhf_lightning.cli.build import Run

log = logging.getLogger(__name__)


def fill_reference_cache(run: Run) -> None:
    """Compute what is missing and give the data module its store."""
    source = _MissingRows(run)
    writer = _WriteLogProbs(source)
    callbacks_of(run.trainer).append(writer)
    try:
        run.trainer.predict(run.module, datamodule=source, return_predictions=False)
    finally:
        callbacks_of(run.trainer).remove(writer)
    assert source.store is not None
    source.store.refresh()
    run.data.reference_store = source.store


class _MissingRows(L.LightningDataModule):
    """The rows that the store lacks; the store's name needs the weights, which are there when Lightning asks."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.store: ReferenceStore | None = None

    def predict_dataloader(self) -> Any:
        """Open the store of the loaded model and list what it lacks."""
        trainer, module = self.run.trainer, self.run.module
        self.run.data.trainer = trainer
        fingerprint = reference_fingerprint(module.policy, precision=str(trainer.precision))
        self.store = ReferenceStore(default_folder() / "reference", fingerprint)
        loader = self.run.data.reference_loader(self.store)
        if trainer.is_global_zero:
            log.info("%-9s %s in %s", "reference", _missing(len(loader)), self.store.path)
        return loader


class _WriteLogProbs(Callback):
    """Writes each batch's log-probs into the store as it comes."""

    def __init__(self, source: _MissingRows) -> None:
        self.source = source
        self.writer: ReferenceWriter | None = None

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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was computed."""
        self._flush()

    def _flush(self) -> None:
        if self.writer is not None:
            self.writer.flush()


def _missing(batches: int) -> str:
    return f"{batches} batches to compute, kept" if batches else "all log-probs are"
