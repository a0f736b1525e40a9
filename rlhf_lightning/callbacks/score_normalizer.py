"""Normalisation of a reward model's scores, measured at the end of training."""

from __future__ import annotations

import itertools
import logging
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

log = logging.getLogger(__name__)


class ScoreNormalizer(Callback):
    """Measures the normalisation that ``method.normalize`` asks for when training ends, before anything is saved.

    The numbers go into checkpoints and exports, and are applied wherever the model is used as a reward.

    Args:
        data: responses to measure on: ``train`` or ``validation`` (training data if there is none).
        batches: number of batches to measure on, over all processes together: optimiser steps of the training data,
            however they are cut into micro-batches.
    """

    def __init__(self, data: Literal["train", "validation"] = "train", batches: int = 64) -> None:
        if data not in ("train", "validation") or batches < 1:
            raise ValueError(
                f"callbacks.normalize: data={data!r} must be train or validation, and batches={batches} at least 1"
            )
        self.data, self.batches = data, batches

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure; a collective call."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(pl_module, "normalize", "none") == "none" or data is None:
            return
        loader, count = data.val_dataloader() if self.data == "validation" else None, self.batches
        if loader is None:
            loader, count = data.train_dataloader(), self.batches * trainer.accumulate_grad_batches
        with pl_module.evaluation_weights():
            mean, std = pl_module.measure(itertools.islice(loader, count))
        if trainer.is_global_zero:
            log.info("scores are normalised by mean %.4g and standard deviation %.4g", mean, std)
