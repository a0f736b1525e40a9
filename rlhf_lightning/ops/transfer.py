"""Indices and transfers that do not make the host wait for a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def to_device(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of Python numbers on a device.

    ``torch.tensor(values, device=device)`` waits until the device has done all work that was queued before the copy.

    Args:
        values: numbers, nested as the tensor is.
        dtype: of the tensor.
        device: where it shall be.
    """
    made = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=device.type != "mps")


def positions(mask: Bool[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """Indices where a mask is True, in order. ``mask.nonzero()`` and ``x[mask]`` wait to learn how many there are.

    Args:
        mask: of which exactly ``count`` entries are True.
        count: the host's own number of them.
    """
    return torch.nonzero_static(mask, size=count).squeeze(1)
