"""How the C library keeps freed memory."""

from __future__ import annotations

import ctypes
import os
import sys

_M_MMAP_THRESHOLD = -3  # <malloc.h> of glibc
#: Tensors of at least this many bytes are given back to the system as soon as they are freed.
THRESHOLD = 1 << 20


def return_freed_memory() -> bool:
    """Have glibc return the memory of freed tensors instead of keeping it for later.

    glibc raises its bound with every large block that is freed, up to 32 MiB, and keeps what is smaller on a heap that
    can only shrink from its top. Activations of a small model are below that and differ in size from step to step, so
    holes stay and a run on the CPU grows to twice what it needs.

    Returns:
        Whether it was done: not where the user chose (``MALLOC_MMAP_THRESHOLD_``) or the C library is another one.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, THRESHOLD) == 1
