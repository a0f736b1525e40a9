"""Whitening: numbers with mean 0 and variance 1, over all tokens of a rollout."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def whiten(
    values: Float[Tensor, "*n"],
    *,
    shift_mean: bool = True,
    unbiased: bool = True,
    eps: float = 1e-8,
    mask: Bool[Tensor, "*n"] | None = None,
) -> Float[Tensor, "*n"]:
    r""":math:`(x - \mu) / \sqrt{\sigma^2 + \epsilon}`, and with ``shift_mean=False`` the mean added back.

    Episodes hold the whole rollout on every process, so these statistics are global without communication.

    Source: ``whiten`` of openai/lm-human-preferences, detail 18 of "The N Implementation Details of RLHF with PPO".
    Defaults: ``eps`` that code's. Its variance (TensorFlow's moments) is biased; torch's, TRL's and ours are not.

    Args:
        values: one number a token.
        shift_mean: whether the mean becomes 0.
        unbiased: divide the squares by n - 1 instead of n.
        eps: added to the variance.
        mask: the numbers that count; the others are changed by the same statistics. None: all.
    """
    counted = values if mask is None else values[mask]
    if counted.numel() == 0:
        return values
    mean = counted.mean()
    # A single number has no unbiased variance; its biased one is 0.
    variance = counted.var(correction=1 if unbiased and counted.numel() > 1 else 0)
    white = (values - mean) * torch.rsqrt(variance + eps)
    return white if shift_mean else white + mean
