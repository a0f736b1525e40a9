"""Memory between the jobs of a sweep."""

from __future__ import annotations

import ctypes
import gc


def release() -> None:
    """Free what a finished job has left, and give it back to the system where the C library is glibc.

    Module and trainer know each other, so only the garbage collector frees them, which by itself may come too late:
    the models of several jobs pile up. And glibc keeps freed blocks of up to 32 MiB on a heap that shrinks from its top
    only, so that a process would stay as large as the largest of its jobs, and holes of one job's sizes are of little
    use to the next one.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
