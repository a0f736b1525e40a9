"""Sums and means over the ragged last axis of a packed batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def segment_sum(values: Float[Tensor, " n"], segment: Int[Tensor, " n"], count: int) -> Float[Tensor, " count"]:
    """Sum of the values of each segment, in at least float32.

    Args:
        values: one number an element.
        segment: the segment of each element, 0 .. count - 1.
        count: number of segments; a segment without elements sums to 0.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    return torch.zeros(count, dtype=dtype, device=values.device).index_add(0, segment, values.to(dtype))


def segment_mean(values: Float[Tensor, " n"], segment: Int[Tensor, " n"], count: int) -> Float[Tensor, " count"]:
    """Mean of the values of each segment, in at least float32; an empty segment has mean 0."""
    total = segment_sum(values, segment, count)
    return total / segment_sum(torch.ones_like(values), segment, count).clamp(min=1)
