"""Time of the optimiser steps in jobs that draw responses, in addition to the times of their rounds."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, Trainer


class PhaseTimes(Callback):
    """Counts the seconds of forward, backward and optimiser as ``train/time/train``.

    Rounds log their own times: ``train/time/generate``, ``reward``, ``score`` (log-probs, reference, values),
    ``credit`` or ``select``, and ``sync``. This callback adds the steps of the previous round, logged with the next
    one. Validation and the drawing of batches are excluded. Nothing is logged in jobs that do not draw responses.
    """

    def __init__(self) -> None:
        self._since = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add the time to the rollout's clock."""
        clock = getattr(trainer.datamodule, "clock", None)  # type: ignore[attr-defined]
        if clock is not None:
            clock.seconds["train"] += time.perf_counter() - self._since
