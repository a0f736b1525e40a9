"""Random numbers of one sample, whatever is drawn with it.

A sample's tokens are drawn by inverse CDF, one uniform number a token. The numbers of sample ``j`` of a prompt come
from Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") under the key ``(seed, j)``: a
counter-based generator, so number ``t`` is a function of ``(seed, j, t)``. Batches, devices and processes do not
matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

_WORD = 1 << 64


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed from whatever names a stream (the run's seed, the rollout's number, the prompt's index).

    The same in every process and Python version, unlike ``hash``.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniforms(streams: Sequence[tuple[int, int]], count: int) -> Float64[Tensor, "streams count"]:
    """The first ``count`` numbers in [0, 1) of each stream.

    Args:
        streams: a seed and the number of a sample under it; both are taken modulo 2^64.
        count: how many.
    """
    numbers = np.empty((len(streams), count))
    for row, (seed, sample) in zip(numbers, streams, strict=True):
        key = np.array([seed % _WORD, sample % _WORD], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(out=row)
    return torch.from_numpy(numbers)
