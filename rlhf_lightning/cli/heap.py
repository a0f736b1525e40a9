"""Freed memory: given back as tensors die, and between the jobs of a sweep."""

from __future__ import annotations

import ctypes
import gc
import os

#: Parameter of glibc's ``mallopt``: blocks from this size on are mapped, and unmapped when they are freed.
_MMAP_THRESHOLD = -3
#: The size that is set. glibc starts at 128 KiB and raises it, up to 32 MiB, to the size of any block that is freed.
MAPPED_FROM = 2**20


def map_large_blocks() -> bool:
    """Let glibc give every freed block of a MiB and more back to the system at once.

    glibc raises that size to the largest block freed so far. Activations of a few MiB then lie on its heap between
    others that live longer, and what is freed among them stays with the process: with LoRA, which makes several
    short-lived tensors a layer, a third of its peak. Nothing happens where ``MALLOC_MMAP_THRESHOLD_`` is set or the C
    library is another one.

    Returns:
        Whether it was set.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is None or os.environ.get("MALLOC_MMAP_THRESHOLD_"):
        return False
    return bool(choose(_MMAP_THRESHOLD, MAPPED_FROM))


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
