"""Rates that turn operations and bytes into seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rates:
    """Rates of one device.

    Attributes:
        flops: of large matrix products, operations a second.
        bandwidth: bytes of memory that are read a second.
        efficiency: share of ``flops`` that a whole step reaches. Llama 3 was trained at 0.38 to 0.43 of an H100's peak
            (arXiv:2407.21783, table 4).
        link: bytes that a device sends a second; None: communication is not counted.
    """

    flops: float
    bandwidth: float
    efficiency: float = 0.4
    link: float | None = None


def measured_rates(
    dtype: torch.dtype = torch.float32, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Rates of this processor with torch's threads: operations a second of matrix products, bytes read a second.

    Args:
        dtype: of the products.
        seconds: that each of the two measurements takes, at least one pass.
        clock: that says the time; ``time.process_time`` counts CPU seconds, which other processes disturb less.
    """
    left, right = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    products = _calls_per_second(lambda: left @ right, seconds, clock) * 2 * 1024**3
    store = torch.ones(2**26)  # 256 MiB: more than a cache holds
    return products, _calls_per_second(lambda: store.sum(), seconds, clock) * store.numel() * 4


def _calls_per_second(call: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    call()  # the first call makes its kernel
    calls, start = 0, clock()
    while (passed := clock() - start) < seconds or not calls:
        call()
        calls += 1
    return calls / passed
