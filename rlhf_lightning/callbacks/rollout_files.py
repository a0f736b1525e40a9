"""Deletion of a long run's old rollout files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

from rlhf_lightning.callbacks.last_checkpoint import LastCheckpoint


class RolloutFiles(Callback):
    """Deletes rollout files that are no longer needed; methods without rollouts have none.

    After a kill, the resumed run reads the rollouts since ``last.ckpt`` instead of drawing them again, which keeps the
    resume exact even if a draw cannot be repeated (a server, a judge). These files stay whatever ``keep`` is. Without a
    callback that saves ``last.ckpt``, the run cannot be resumed and none of them is needed.

    Args:
        keep: ``all``, or the number of latest rollouts to keep, in addition to those since ``last.ckpt``; 0: none.

    Raises:
        ValueError: ``keep`` is negative or another word.
    """

    def __init__(self, keep: int | Literal["all"] = "all") -> None:
        if keep != "all" and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 0):
            raise ValueError(f"callbacks.rollout_files.keep={keep} must be all, or a number of rollouts from 0")
        self.keep = keep
        self._begun: dict[int, int] = {}  # rollouts that were begun, by the optimiser step of a checkpoint

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Record the number of rollouts before a checkpoint; the current rollout is part of it."""
        self._begun[trainer.global_step] = int(getattr(trainer.train_dataloader, "number", 0))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Delete files that the last checkpoint made superfluous."""
        self._delete(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Delete files a last time, after the last checkpoint."""
        self._delete(trainer)

    def _delete(self, trainer: Trainer) -> None:
        folder: Path | None = getattr(trainer.datamodule, "folder", None)  # type: ignore[attr-defined]
        if self.keep == "all" or folder is None or not trainer.is_global_zero:
            return
        begun = int(getattr(trainer.train_dataloader, "number", 0))
        first = min(begun - self.keep, self._needed(trainer, begun))
        for file in (*folder.glob("*.jsonl"), *folder.glob("groups/*.jsonl")) if first > 0 else ():
            if file.stem.isdecimal() and int(file.stem) < first:
                file.unlink(missing_ok=True)

    def _needed(self, trainer: Trainer, begun: int) -> int:
        """Number of the first rollout that the run would have to draw again if it was killed now."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saving = [callback.saved_step for callback in callbacks if isinstance(callback, LastCheckpoint)]
        return min((self._begun.get(step, 0) for step in saving), default=begun)
