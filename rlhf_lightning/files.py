"""Files and folders that are whole or absent, whenever the process that writes them dies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

#: How the names of unfinished files end.
TEMPORARY = ".unfinished"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
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
