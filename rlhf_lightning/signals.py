"""Exit codes of a run that was asked to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TypeVar

T = TypeVar("T")

#: What a shell reports for a process that SIGTERM or Ctrl-C ended; schedulers take it for "stopped", not "failed".
SIGTERM_EXIT, SIGINT_EXIT = 128 + signal.SIGTERM, 128 + signal.SIGINT


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Exit with 143 on SIGTERM while this lasts; exit handlers and ``finally`` blocks run.

    Without it the process dies where it is: a shell reports the same, and nothing tidies up.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_with_exit_code(function: Callable[[], T]) -> T:
    """Call a function so that the process exits with 143 when SIGTERM stops it, and with 130 when Ctrl-C does.

    During training the ``LastCheckpoint`` callback finishes the step, saves and stops. Before and after it there is
    nothing to save and the process exits at once. Lightning alone would exit with 0, which a scheduler takes for a
    finished run.

    Exit handlers and ``finally`` blocks run. In a process that Lightning's launcher started the exit code is 0: for
    anything else the launcher kills the main process, which is about to exit itself.

    Args:
        function: the whole job, without arguments.
    """
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        with exit_on_sigterm():
            return function()
    except SIGTERMException as stop:  # Lightning's own has no code
        sys.exit(0 if _launched() else stop.code or SIGTERM_EXIT)


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(SIGTERM_EXIT)


def _launched() -> bool:
    """Check whether another process of this job reports the exit code."""
    return os.environ.get("LOCAL_RANK", "0") != "0"
