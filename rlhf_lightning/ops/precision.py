"""Matrix products of bfloat16 values with a float32 result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Let products of float32 tensors whose values are bfloat16 run on bfloat16 units, which loses nothing.

    PyTorch has no product of bfloat16 matrices with a float32 result on a CPU. oneDNN's reduced-precision mode is one:
    it rounds float32 inputs to bfloat16, which leaves them as they are, and sums in float32. That costs about twice
    a bfloat16 product and half a float32 one. In other dtypes and on other devices nothing changes.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if dtype != torch.bfloat16:
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
