"""Exchange between the processes of a run: shares become wholes, the same on every process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def world_size() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(local: T) -> list[T]:
    """The object of every process, by rank; a collective call."""
    if world_size() == 1:
        return [local]
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, local)
    return cast("list[T]", shares)


def interleaved(shares: Sequence[Sequence[T]]) -> list[T]:
    """One list out of those of the processes, of which process ``r`` has the entries ``r``, ``r + count``, ..."""
    whole: list[Any] = [None] * sum(len(share) for share in shares)
    for rank, share in enumerate(shares):
        whole[rank :: len(shares)] = share
    return whole


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as this phase's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """Return the seconds so far and start again from 0."""
        seconds = dict(self.seconds)
        self.seconds.clear()
        return seconds
