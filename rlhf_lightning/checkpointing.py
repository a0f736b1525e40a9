"""Checkpoint files that are whole or absent, whenever the process dies, and the validation that one interrupts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

#: How the names of unfinished files end.
TEMPORARY = ".unfinished"


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
            ValueError: the checkpoint is a folder of shards.
        """
        if Path(path).is_dir():
            raise ValueError(sharded_error(path))
        return super().load_checkpoint(path, *args, **options)


def validation_pending(trainer: Trainer) -> bool:
    """Whether a validation of ``fit`` is under way, or is due at the end of the step that is ending.

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

    Lightning skips a validation that was due when a checkpoint was written, and goes on in the middle of one that was
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
    """What to say where a folder of shards is read as a file, with the ways out."""
    return (
        f"{path} is a sharded checkpoint, a part of each process, and only strategy=fsdp reads it: add strategy=fsdp "
        "strategy.devices=<n> to this command, with any number. Its run's next checkpoint is one file, which every "
        "strategy reads, when it is resumed with strategy=fsdp strategy.strategy.save_distributed_checkpoint=false "
        "(a run that has ended: with trainer.max_steps=<one more> too)"
    )


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary path in the same folder, then give it its name.

    What a killed process left unfinished in the folder is deleted first. One process at a time writes to a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".*{TEMPORARY}"):
        remove(leftover)
    temporary = temporary_name(path)
    try:
        write(temporary)
        sync(temporary)
        replace(temporary, path)
    finally:
        remove(temporary)


def replace(temporary: Path, path: Path) -> None:
    """Move a finished file or folder to its name, over what is there.

    A folder cannot replace another in one system call: the old one is first moved to ``<name>.old``, where
    ``recovered`` finds it after a kill between the two.
    """
    old = old_name(path)
    if path.is_dir() or (temporary.is_dir() and path.exists()):
        remove(old)
        os.replace(path, old)
    os.replace(temporary, path)
    sync_folder(path.parent)
    remove(old)


def recovered(path: Path) -> Path:
    """The path, or the previous checkpoint if the process died while it was being replaced."""
    old = old_name(path)
    return old if not path.exists() and old.exists() else path


def temporary_name(path: Path) -> Path:
    """Where a checkpoint is written before it takes its name."""
    return path.with_name(f".{path.name}{TEMPORARY}")


def old_name(path: Path) -> Path:
    """Where a folder waits while its successor takes its name."""
    return path.with_name(path.name + ".old")


def remove(path: Path) -> None:
    """Delete a file or folder that may be missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or every file of a folder, to the disk."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if path.is_dir():
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk: without it a rename may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
