"""How many rollouts of a long run stay on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

from rlhf_lightning.callbacks.last_checkpoint import LastCheckpoint


class RolloutFiles(Callback):
    """Deletes rollouts' files that nobody needs any more; other methods have none.

    A run that is killed reads the rollouts since ``last.ckpt`` instead of drawing them again, which keeps the resume
    exact also where a draw cannot be repeated (a server, a judge). These stay whatever ``keep`` says; without
    a callback that saves ``last.ckpt`` nothing goes on, and none of them are needed.

    Args:
        keep: ``all``, or how many of the latest rollouts, beside those since ``last.ckpt``; 0: none.

    Raises:
        ValueError: a negative number, or another word.
    """

    def __init__(self, keep: int | Literal["all"] = "all") -> None:
        if keep != "all" and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 0):
            raise ValueError(f"callbacks.rollout_files.keep={keep} must be all, or a number of rollouts from 0")
        self.keep = keep
        self._begun: dict[int, int] = {}  # rollouts that were begun, by the optimiser step of a checkpoint

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note how many rollouts a checkpoint has behind it; the one at hand lies in it."""
        self._begun[trainer.global_step] = int(getattr(trainer.train_dataloader, "number", 0))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Delete what the last checkpoint made superfluous."""
        self._delete(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The last time, behind the last checkpoint."""
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
        """The first rollout that a run would have to draw again if it was killed now."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        saving = [callback.saved_step for callback in callbacks if isinstance(callback, LastCheckpoint)]
        return min((self._begun.get(step, 0) for step in saving), default=begun)
