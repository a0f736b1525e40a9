"""Settings of a job on a CPU, made before torch is imported and before anything is computed.

OpenMP's threads spin while they wait for one another. On a core that another process holds, that is time in which the
work itself stands still: beside ten busy processes two threads did not end in 100 s what one did in 3 s. Here they spin
for tens of microseconds, which bridges the gap between two operations, and then sleep.

oneDNN compiles a kernel for every shape that it meets, half a megabyte each in bfloat16, and keeps the last thousand in
each of two caches. Packed rows hardly ever have the same length twice, so that was gigabytes in a run. The layers of a
model share their shapes, so a few dozen kernels serve.

The libraries read these variables as they are loaded, so this module imports torch only where a job runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

#: How threads wait: rounds of GNU's runtime, which torch's wheels bring; milliseconds of Intel's and LLVM's.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
#: How many kernels oneDNN and torch's layer above it keep. One cache alone saves nothing: the other holds the kernel.
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}


def set_cpu_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what the libraries read, except where the user has.

    Args:
        environment: of this process; those that it starts inherit it.
    """
    for name, value in (KERNELS if "OMP_WAIT_POLICY" in environment else WAITING | KERNELS).items():
        environment.setdefault(name, value)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take float32 numbers below 1.2e-38 for 0 while a job runs; afterwards this thread does as before.

    A processor computes with such numbers up to fifty times as slowly: probabilities of distant tokens, and averages
    of gradients that have long been 0, come down to them. Threads that torch starts meanwhile do the same; to reach all
    of them the job must not have computed anything yet.
    """
    import torch

    before = bool(torch.tensor(1e-38) * 0.1 == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
