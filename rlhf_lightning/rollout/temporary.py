"""A folder that is removed with the process that made it, even if that process is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

#: Removes a folder once its parent is another process than it was; by the standard library alone, so that it is small.
_WATCH = """
import os, shutil, sys, time
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.5)
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""


class TemporaryFolder:
    """A folder for what serves this process alone, such as copies of its weights.

    It is removed by :meth:`remove`, when this object is collected or the interpreter exits, and within a second where
    this process is killed: a small process in a session of its own watches it.

    Args:
        prefix: of the folder's name.

    Raises:
        OSError: the folder or the process that watches cannot be made.
    """

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, str(os.getpid()), str(self.path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the run's process group must not end it first
        )
        self._kept: set[Path] = set()
        self.remove = weakref.finalize(self, _remove, self.path, self._kept, watcher)

    def keep(self, file: Path) -> None:
        """Leave this file where it is when the rest is removed, since an error names it."""
        self._kept.add(file)


def _remove(folder: Path, kept: set[Path], watcher: subprocess.Popen[bytes]) -> None:
    for entry in folder.iterdir() if folder.exists() else ():
        if entry in kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    watcher.kill()
    watcher.wait()
