"""A miniature of ``benchmarks/scaling.py``: bytes are counted, not seconds."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.scaling import Largest, head_step, largest_tensor, response_step, table
from rlhf_lightning.ops.log_probs import BLOCK_BYTES


def kept_bytes(step) -> int:
    """Bytes of the distinct storages that the backward pass of a step keeps."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_the_largest_tensor_is_seen():
    with Largest() as seen:
        (torch.ones(30, 1) * torch.ones(1, 20)).sum()
    assert seen.bytes == 30 * 20 * 4


def test_a_response_keeps_memory_that_is_linear_in_its_length():
    sizes = (512, 1024, 2048)
    kept = [kept_bytes(response_step(size)) for size in sizes]
    assert (kept[2] - kept[1]) / (kept[1] - kept[0]) == pytest.approx(2, rel=0.05)
    largest = [largest_tensor(response_step(size)) for size in sizes]
    assert largest[2] <= 2.2 * largest[1]
    assert largest[2] < 4 * 2048 * 2048 * 4 / 4  # the scores of all heads would be four times as large


def test_the_head_makes_no_tokens_times_vocabulary():
    weight = 131_072 * 64 * 4
    assert largest_tensor(head_step(131_072)) <= max(weight, BLOCK_BYTES["cpu"]) < 512 * 131_072 * 4 / 4


def test_the_table_compares_each_size_with_the_first():
    lines = list(table("rows", (10, 40), lambda _, size: {"seconds": size / 100, "bytes": 2.0**20, "largest": 0}))
    assert len(lines) == 3
    assert re.split(r" +", lines[2].strip()) == ["40", "0.40", "1.0", "0.0", "4.0", "4.00", "1.00"]
