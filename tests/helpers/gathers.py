"""Counts of what FSDP2 sends, seen at torch's collective operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass
class Sent:
    """Dtype and number of elements of every tensor that a collective operation was given, by kind."""

    gathered: list[tuple[torch.dtype, int]] = field(default_factory=list)
    reduced: list[tuple[torch.dtype, int]] = field(default_factory=list)

    def dtypes(self, kind: str) -> set[torch.dtype]:
        return {dtype for dtype, _ in getattr(self, kind)}

    def bytes(self, kind: str) -> int:
        return sum(dtype.itemsize * count for dtype, count in getattr(self, kind))


class _Seen(TorchDispatchMode):
    def __init__(self, sent: Sent) -> None:
        super().__init__()
        self.sent = sent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = {"_allgather_base_": "gathered", "_reduce_scatter_base_": "reduced"}.get(func.__name__.split(".")[0])
        if kind is not None and not isinstance(args[1], DTensor):
            getattr(self.sent, kind).append((args[1].dtype, args[1].numel()))
        return func(*args, **(kwargs or {}))


@contextmanager
def sent() -> Iterator[Sent]:
    """Everything that is gathered and reduced while this is open."""
    seen = Sent()
    with _Seen(seen):
        yield seen
