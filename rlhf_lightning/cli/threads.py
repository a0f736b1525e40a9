"""How threads that share an operation wait for one another, and what they do with the smallest numbers.

OpenMP's threads spin while they wait. On a core that another process holds, that is time in which the work itself
stands still: beside busy processes, steps of two threads took a hundred times as long as those of one. Here they spin
for tens of microseconds, which bridges the gap between two operations, and then sleep.

OpenMP reads its variables as torch is imported, so this module imports torch only where a job runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

#: Rounds of GNU's runtime, which torch's wheels bring; milliseconds of Intel's and LLVM's.
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


def let_waiting_threads_sleep(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what OpenMP's runtimes read, unless the user has decided how threads wait.

    Args:
        environment: of this process; those that it starts inherit it.
    """
    if "OMP_WAIT_POLICY" in environment:
        return
    for name, value in WAITING.items():
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
