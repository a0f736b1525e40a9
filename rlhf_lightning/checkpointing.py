"""Checkpoint files that are whole or absent, whenever the process dies, and the validation that one interrupts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from rlhf_lightning.checkpoint_files import reading
from rlhf_lightning.files import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames: a reader sees the old file or the new one.

    Lightning writes to the system's temporary folder and moves the file from there, which is a copy when that folder
    is on another file system: a kill in the middle leaves an empty ``last.ckpt`` and takes the old one with it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint under a name that never shows an unfinished file.

        Args:
            checkpoint: what Lightning collected.
            path: a local path.
            storage_options: not supported.

        Raises:
            TypeError: ``storage_options`` were given.
        """
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes local files and takes no storage_options")
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """Load a checkpoint file.

        Args:
            path: a local path.
            args: see ``TorchCheckpointIO``.
            options: see ``TorchCheckpointIO``.

        Raises:
            ValueError: the checkpoint is a folder of shards, damaged, or another program's.
        """
        if Path(path).is_dir():
            raise ValueError(sharded_error(path))
        with reading(Path(path)):
            return super().load_checkpoint(path, *args, **options)


def validation_pending(trainer: Trainer) -> bool:
    """Check whether a validation of ``fit`` is under way, or is due at the end of the step that is ending.

    Args:
        trainer: in any hook.
    """
    loop = trainer.fit_loop.epoch_loop
    if trainer.validating:
        done = loop.val_loop.batch_progress.current.completed
        return trainer.state.fn == TrainerFn.FITTING and done < sum(trainer.num_val_batches)
    batches: Any = loop.batch_progress.current
    fetcher = trainer.fit_loop._data_fetcher
    ending = batches.completed == batches.processed - 1
    return ending and fetcher is not None and loop._should_check_val_fx(fetcher)


def reopen_validation(fit_loop: dict[str, Any]) -> None:
    """Set the counters of a checkpoint to those of a validation whose first batch has started, in place.

    Lightning skips a validation that was due when a checkpoint was written, and continues in the middle of one that was
    under way, whose means then lack what was measured before. With these counters a resume runs it, whole.

    Args:
        fit_loop: the state of Lightning's fit loop at the end of an optimiser step.
    """
    for counters in (fit_loop["epoch_loop.batch_progress"][part] for part in ("total", "current")):
        counters["completed"] = counters["processed"]
    started = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    fit_loop["epoch_loop.val_loop.batch_progress"] = {
        "total": started,
        "current": dict.fromkeys(started, 0),
        "is_last_batch": False,
    }


def sharded_error(path: str | Path) -> str:
    """Error message for a folder of shards that is read as a file, with the ways out."""
    return (
        f"{path} is a sharded checkpoint, a part of each process, and only strategy=fsdp reads it: add strategy=fsdp "
        "strategy.devices=<n> to this command, with any number. Its run's next checkpoint is one file, which every "
        "strategy reads, when it is resumed with strategy=fsdp strategy.strategy.save_distributed_checkpoint=false "
        "(a run that has ended: with trainer.max_steps=<one more> too)"
    )
