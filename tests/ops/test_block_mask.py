"""Block masks from spans, against the pairs of tokens that see each other."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.attention import Layout
from rlhf_lightning.ops.block_mask import block_mask, visible_blocks
from rlhf_lightning.types import Example
from tests.ops.test_attention import dense_mask, layout

TENSORS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
TENSORS += tuple(name.replace("kv_", "q_") for name in TENSORS)

Groups = list[tuple[int, list[int]]]


def arrays(groups: Groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    segments = layout(groups)
    spans = np.array(segments.responses)
    return np.array(segments.prompts), spans[:, :2], spans[:, 2]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3)), min_size=1, max_size=3),
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([1, 2, 4]),
)
def test_blocks_are_partial_or_full_as_their_pairs_of_tokens_are(
    groups: Groups, window: int | None, block: int
) -> None:
    mask = dense_mask(layout(groups), window).numpy()
    tokens = len(mask)
    missing = -tokens % block
    by_block = np.pad(mask, (0, missing)).reshape((tokens + missing) // block, block, -1, block)
    pairs = by_block.sum((1, 3))
    partial, full = visible_blocks(*arrays(groups), tokens, window, block)
    np.testing.assert_array_equal(full, pairs == block * block)
    np.testing.assert_array_equal(partial, (pairs > 0) & ~full)


@pytest.mark.parametrize("window", [None, 40, 300])
def test_the_mask_is_the_one_that_torch_makes_of_all_pairs(window: int | None) -> None:
    sizes = [(200, [90, 0, 333]), (1, [7]), (140, [2, 2, 3, 150])]
    groups = [Example([1] * prompt, [[1] * length for length in lengths]) for prompt, lengths in sizes]
    groups = [Example(each.prompt, [*each.responses, *[[]] * (4 - len(each.responses))]) for each in groups]
    ours = Layout.of(pack(groups))
    tokens = len(ours.positions)
    mask = ours.block_mask(window)
    expected = create_block_mask(ours.visible(window), None, None, tokens, tokens, device="cpu")
    assert mask.BLOCK_SIZE == expected.BLOCK_SIZE
    assert mask.shape == expected.shape
    assert torch.equal(mask.to_dense(), expected.to_dense())
    for name in TENSORS:
        got, wanted = getattr(mask, name), getattr(expected, name)
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        if name.endswith("indices"):  # those past the number of blocks are never read
            count = getattr(expected, name.replace("indices", "num_blocks"))
            filled = torch.arange(got.shape[-1]) < count[..., None]
            got, wanted = got.where(filled, 0), wanted.where(filled, 0)
        assert torch.equal(got, wanted), name


def bytes_of(mask: BlockMask) -> int:
    return sum(getattr(mask, name).nbytes for name in TENSORS)


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("groups", [[(1, [65535])], [(512, [512] * 15)] * 8, [(60, [2, 2])] * 1024])
def test_a_row_of_64k_tokens_takes_megabytes(groups: Groups, window: int | None) -> None:
    spans = arrays(groups)
    tokens = int(spans[1].max())
    assert 2**16 <= tokens < 2**16 + 2**10
    tracemalloc.start()
    partial, full = visible_blocks(*spans, tokens, window)
    mask = block_mask(partial, full, lambda *_: torch.tensor(True), tokens, torch.device("cpu"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bytes_of(mask) < 5 * 2**20
    assert peak < 32 * 2**20  # all pairs of tokens: 4096 MiB
