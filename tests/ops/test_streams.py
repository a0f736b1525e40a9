"""Streams of random numbers: functions of (seed, sample, token), and nothing else."""

from __future__ import annotations

import subprocess
import sys

import torch

from rlhf_lightning.ops.streams import stream_seed, uniforms


def test_a_stream_does_not_depend_on_its_neighbours_or_on_how_much_is_asked():
    together = uniforms([(7, 0), (7, 1), (8, 0)], 20)
    assert torch.equal(uniforms([(7, 1)], 20)[0], together[1])
    assert torch.equal(uniforms([(8, 0)], 5)[0], together[2, :5])


def test_streams_differ_by_seed_and_by_sample():
    rows = uniforms([(seed, sample) for seed in range(20) for sample in range(20)], 4)
    assert len({tuple(row) for row in rows.tolist()}) == 400
    assert not torch.equal(rows[1], rows[20])  # (0, 1) is not (1, 0)


def test_numbers_are_uniform():
    numbers = uniforms([(3, sample) for sample in range(200)], 500).flatten()
    assert numbers.dtype == torch.float64
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 20, 0, 1)
    # 19 degrees of freedom: 43.8 is exceeded once in a thousand
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 43.8
    first, second = numbers[:-1] - 0.5, numbers[1:] - 0.5
    assert abs(float((first * second).mean()) * 12) < 4 / len(numbers) ** 0.5  # neighbours are not correlated


def test_large_and_negative_seeds_are_fine():
    assert torch.equal(uniforms([(-1, 0)], 3), uniforms([((1 << 64) - 1, 0)], 3))


def test_the_seed_of_a_name_is_the_same_in_every_process():
    code = "from rlhf_lightning.ops.streams import stream_seed; print(stream_seed('rollout', 3, 7))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == stream_seed("rollout", 3, 7)
    assert stream_seed(1, "a") == 4207620368297011618  # runs that resume draw on
    assert 0 <= stream_seed("rollout", 3, 7) < 1 << 63
    assert len({stream_seed("a", i) for i in range(100)} | {stream_seed("b", i) for i in range(100)}) == 200
