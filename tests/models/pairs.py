"""Pairs of random token ids, packed: what the tests of models score."""

from __future__ import annotations

import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.types import Example, PreferenceBatch


def pairs(seed: int = 0, groups: int = 3, vocabulary: int = 256, longest: int = 12) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(seed)

    def ids() -> list[int]:
        length = int(torch.randint(2, longest + 1, (1,), generator=generator))
        return torch.randint(4, vocabulary, (length,), generator=generator).tolist()

    batch = pack([Example(prompt=ids(), responses=[ids(), ids()]) for _ in range(groups)])
    assert isinstance(batch, PreferenceBatch)
    return batch
