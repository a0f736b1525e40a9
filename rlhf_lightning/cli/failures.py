"""Errors of a job's processes: each process saves its error, and the first one is the job's.

A process that fails takes the others with it: they lose the connection, or wait for it until they give up. What they
report then is not what happened. So every process writes its error to ``errors/rank-<n>.txt`` in the run's folder,
and whoever reports for the job shows the first that is not such a consequence.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rlhf_lightning.cli.errors import describe, exit_code, is_message, root_cause

#: The folder of errors in a run's folder.
FOLDER = "errors"
#: When this process began: older files are of an earlier command.
BEGAN = time.time()
#: Parts of errors that say no more than that another process has gone, or does not come.
_CONSEQUENCES = ("Connection closed by peer", "gloo", "NCCL", "ProcessGroup", "TCPStore")
#: Seconds that the error of another process may take to be seen, on a file system that several machines share.
_PATIENCE = 5.0
#: Seconds between two looks at the errors of the others.
_LOOK_EVERY = 2.0
#: Seconds that a process may take to end by itself when another one has failed.
_GRACE = 15.0


@dataclass(frozen=True)
class Failure:
    """An error as the process that raised it keeps it."""

    time: float  #: since the epoch, in seconds
    rank: int
    host: str
    text: str  #: see :func:`rlhf_lightning.cli.errors.describe`
    code: int  #: exit code
    bug: bool = False  #: its text was not written for people
    consequence: bool = False  #: it says that another process has gone

    @property
    def message(self) -> str:
        """The text, with the process where that is not the first."""
        where = f"rank {self.rank} on {self.host}: " if self.rank else ""
        lost = "\n  No process left another error: one was killed (out of memory?), lost its machine, or never came"
        return f"{where}{self.text}{lost if self.consequence else ''}"


def failure_of(error: BaseException, rank: int = 0) -> Failure:
    """An error of this process."""
    root, text = root_cause(error), describe(error)
    unexpected = not is_message(root)
    of_torch = type(root).__module__.startswith("torch.distributed")
    named = isinstance(root, RuntimeError) and any(part in text for part in _CONSEQUENCES)
    lost = unexpected and (of_torch or named)
    return Failure(time.time(), rank, socket.gethostname(), text, exit_code(error), unexpected and not lost, lost)


def keep(failure: Failure, error: BaseException, folder: Path) -> None:
    """Write an error to its process's file: a line for programs, then the traceback."""
    file = _file(folder, failure.rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.unfinished")
    temporary.write_text(f"{json.dumps(asdict(failure))}\n{traceback_text(error)}", encoding="utf-8")
    os.replace(temporary, file)


def forget(folder: Path, *, all_of_them: bool) -> None:
    """Delete the errors of earlier commands.

    Args:
        folder: of the run.
        all_of_them: no process of this job has begun; else what is younger than this process is left.
    """
    for file in (folder / FOLDER).glob("rank-*.txt"):
        if all_of_them or (kept := _read(file)) is None or kept.time < BEGAN:
            file.unlink(missing_ok=True)
    if (folder / FOLDER).is_dir() and not any((folder / FOLDER).iterdir()):
        (folder / FOLDER).rmdir()


def first_failure(folder: Path) -> Failure | None:
    """The error that the job failed with: the first that is no consequence of another; None: no process kept one."""
    kept = [failure for file in (folder / FOLDER).glob("rank-*.txt") if (failure := _read(file)) is not None]
    kept = [failure for failure in kept if failure.time >= BEGAN]
    if not kept:
        return None
    first = min(kept, key=lambda failure: (failure.consequence, failure.time))
    same = [failure.rank for failure in kept if failure.text == first.text]
    return replace(first, rank=min(same))  # what all processes found is nobody's in particular


def cause(folder: Path, local: Failure) -> Failure:
    """The error behind this process's own, which may be a consequence."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        first = first_failure(folder) or local
        if not first.consequence or time.monotonic() > deadline:
            return first
        time.sleep(0.2)


def traceback_text(error: BaseException) -> str:
    """The traceback of an error, and of those behind it."""
    return "".join(traceback.format_exception(error))


def traceback_of(folder: Path, failure: Failure) -> str:
    """The traceback that a process kept with its error."""
    return _file(folder, failure.rank).read_text(encoding="utf-8").partition("\n")[2]


class Watch:
    """Ends this process when another one of its job has failed and this one does not notice.

    Where the connection is not torn down with the process (NCCL), the others wait for it until their time is up.

    Args:
        folder: of the run.
        rank: of this process.
        end: called in a thread, with the other's error; it must end the process.
    """

    def __init__(self, folder: Path, rank: int, end: Callable[[Failure], None]) -> None:
        self.folder, self.rank, self.end = folder, rank, end
        self._over = threading.Event()

    def __enter__(self) -> Watch:
        threading.Thread(target=self._watch, name="watch_other_processes", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY):
            first = first_failure(self.folder)
            if first is not None and first.rank != self.rank and not first.consequence:
                if not self._over.wait(_GRACE):
                    self.end(first)
                return


def _file(folder: Path, rank: int) -> Path:
    return folder / FOLDER / f"rank-{rank}.txt"


def _read(file: Path) -> Failure | None:
    """The error in a file; None where it is no whole one."""
    try:
        return Failure(**json.loads(file.read_text(encoding="utf-8").partition("\n")[0]))
    except (OSError, ValueError, TypeError):
        return None
