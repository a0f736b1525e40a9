"""Flex attention's block mask of a packed row, from the spans of its prompts and responses.

The mask is a matrix of blocks of 128 queries by 128 keys. A block is *full* where every query sees every key of it,
*partial* where some query sees some key; only there is the mask function asked, pair of tokens by pair of tokens. Which
blocks are which follows from the spans: the tokens of a segment within a block of queries see one range of keys of
their own segment and one of their prompt, so the work grows with the number of blocks that are visible. The index
tensors have the shape that ``create_block_mask`` gives them: together 16 bytes for each pair of blocks, 4 MiB for 64k
tokens, where that function takes 4 GiB for the pairs of tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

#: Queries and keys of a block: the size that flex attention's kernels are tuned for.
BLOCK = 128

Integers = NDArray[np.int64]


def visible_blocks(
    prompts: Int[NDArray[np.int64], "prompts 2"],
    responses: Int[NDArray[np.int64], "responses 2"],
    parent: Int[NDArray[np.int64], " responses"],
    tokens: int,
    window: int | None,
    block: int = BLOCK,
) -> tuple[Bool[NDArray[np.bool_], "blocks blocks"], Bool[NDArray[np.bool_], "blocks blocks"]]:
    """The partial and the full blocks, by block of queries and block of keys.

    Args:
        prompts: [start, end) of each prompt.
        responses: [start, end) of each response.
        parent: the prompt of each response.
        tokens: length of the row.
        window: sliding window in tokens, the token itself included; None: no limit.
        block: queries and keys of a block.
    """
    blocks = -(-tokens // block)
    window = tokens if window is None else min(window, tokens)
    start, stop, domain, first, last = _segments(prompts, responses, parent)
    segment, row = _ranges(start // block, (stop - 1) // block + 1)  # the pieces: a segment within a block of queries
    begin = np.maximum(start[segment], row * block)
    end = np.minimum(stop[segment], (row + 1) * block)
    oldest, prompt, prompt_end = domain[segment], first[segment], last[segment]
    gap = oldest - prompt_end  # a prompt's keys are so many tokens nearer than index in the row tells

    seen = np.zeros((blocks, blocks), dtype=bool)
    first_sees = (np.maximum(oldest, begin - window + 1), np.maximum(prompt, begin - gap - window + 1))
    for low, high in zip(first_sees, (end, prompt_end), strict=True):  # the keys that some query of the piece sees
        piece, key = _ranges(low // block, np.where(low < high, (high - 1) // block + 1, 0))
        seen[row[piece], key] = True
    covered = np.zeros(blocks * blocks, dtype=np.int64)  # queries that see every key of a block
    last_sees = (np.maximum(oldest, end - window), np.maximum(prompt, end - gap - window))
    for low, high in zip(last_sees, (begin + 1, prompt_end), strict=True):  # the keys that all of them see
        piece, key = _ranges(-(-low // block), high // block)
        np.add.at(covered, row[piece] * blocks + key, (end - begin)[piece])
    full = covered.reshape(blocks, blocks) == block
    return seen & ~full, full


def _segments(prompts: Integers, responses: Integers, parent: Integers) -> tuple[Integers, ...]:
    """Start and stop of every segment, the first key of its own, and the range of keys of its prompt.

    To a response that lies behind its prompt the prompt's keys are its own.
    """
    of_response = prompts[parent]
    behind = (of_response[:, 1] == responses[:, 0]) & (of_response[:, 0] < of_response[:, 1])
    domain = np.where(behind, of_response[:, 0], responses[:, 0])
    none = np.repeat(prompts[:, :1], 2, axis=1)
    seen = np.concatenate([none, np.where(behind[:, None], of_response[:, :1], of_response)])
    spans = np.concatenate([prompts, responses])
    filled = spans[:, 0] < spans[:, 1]
    columns = spans[:, 0], spans[:, 1], np.concatenate([prompts[:, 0], domain]), seen[:, 0], seen[:, 1]
    return tuple(column[filled] for column in columns)


def _ranges(low: Integers, high: Integers) -> tuple[Integers, Integers]:
    """Every integer of the ranges [low, high), and the range that it is of."""
    count = np.maximum(high - low, 0)
    index = np.repeat(np.arange(len(count)), count)
    return index, low[index] + np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)


def block_mask(
    partial: Bool[NDArray[np.bool_], "blocks blocks"],
    full: Bool[NDArray[np.bool_], "blocks blocks"],
    mask_mod: Callable[..., Tensor],
    tokens: int,
    device: torch.device,
    block: int = BLOCK,
) -> BlockMask:
    """Flex attention's form of visible blocks; ``mask_mod`` decides inside the partial ones."""
    kv_num, kv = _ordered(partial, device)
    full_kv_num, full_kv = _ordered(full, device)
    q_num, q = _ordered(partial.T, device)
    full_q_num, full_q = _ordered(full.T, device)
    return BlockMask(
        seq_lengths=(tokens, tokens),
        kv_num_blocks=kv_num,
        kv_indices=kv,
        full_kv_num_blocks=full_kv_num,
        full_kv_indices=full_kv,
        q_num_blocks=q_num,
        q_indices=q,
        full_q_num_blocks=full_q_num,
        full_q_indices=full_q,
        BLOCK_SIZE=(block, block),
        mask_mod=mask_mod,
    )


def _ordered(blocks: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of blocks of each row, and their indices in order."""
    row, column = np.nonzero(blocks)
    count = np.bincount(row, minlength=len(blocks))
    index = np.zeros(blocks.shape, dtype=np.int32)
    index[row, np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)] = column
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(array)[None, None].to(device, non_blocking=True) for array in (count.astype(np.int32), index)
    )
