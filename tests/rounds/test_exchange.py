"""Contents of a round in one of the two processes that drew it: every number, and the tokens of its share."""

from __future__ import annotations

import tracemalloc
from array import array
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rlhf_lightning.lessons import SelectLesson
from rlhf_lightning.rounds.exchange import PIECE, Fetch, announced, collected, dealt
from rlhf_lightning.rounds.processes import gathered, interleaved
from rlhf_lightning.types import Draw, Remote, Sample, SampleGroup, ScoredGroup
from tests.helpers.jobs import ranks
from tests.helpers.online import trajectory
from tests.helpers.rounds import data_of, module_of, rounds_of

GROUPS = 2 * PIECE + 5


def drawn(position: int, samples: int = 4, most: int = 9) -> ScoredGroup:
    """A group as an engine draws it: token ids and log-probs as Python numbers, a text of the row."""
    draw = np.random.default_rng(position)
    lengths = draw.integers(1, most, samples).tolist()
    made = [Sample(draw.integers(0, 50000, n).tolist(), draw.normal(size=n).tolist(), "stop") for n in lengths]
    group = SampleGroup(draw.integers(0, 50000, 3).tolist(), made, {"text": "x" * 100}, f"p:{position}", position)
    return ScoredGroup(position, group, draw.normal(size=samples).tolist(), steps=[[0.5] * n for n in lengths])


def held(groups: list[ScoredGroup]) -> int:
    """Response tokens that this process has."""
    samples = [sample for one in groups for sample in one.group.samples]
    return sum(len(sample.ids) for sample in samples if not isinstance(sample.ids, Remote))


def exchange() -> None:
    dist.init_process_group("gloo")
    rank, whole = dist.get_rank(), [drawn(position) for position in range(GROUPS)]
    local_groups = [drawn(position) for position in range(rank, GROUPS, 2)]
    groups = interleaved(announced(local_groups, lambda group: {"first": [ids[0] for ids in group.responses]}))
    assert held(groups) == held(local_groups) < 0.6 * held(whole)
    assert [one.score for one in groups] == [one.score for one in whole]
    assert [one.facts["first"] for one in groups] == [[ids[0] for ids in one.group.responses] for one in whole]
    assert [[[*row] for row in one.steps] for one in groups] == [one.steps for one in whole]
    for one, expected in zip(groups, whole, strict=True):
        assert [len(s.ids) for s in one.group.samples] == [len(s.ids) for s in expected.group.samples]
        if one.holder != rank:
            assert one.group.columns == {}
            with pytest.raises(RuntimeError, match="fetch them first"):
                list(one.group.prompt)

    with collected(groups) as files:  # before anything is fetched
        read = list(files)
    assert [one.group.samples for one in read] == ([] if rank else [one.group.samples for one in whole])
    with pytest.raises(OSError, match="full") if not rank else collected([]), collected(groups) as files:
        if not rank:
            next(files)
            raise OSError("the disk is full")

    Fetch(torch.device("cpu"))(groups, {0: [3, 1], 1: [0], 2: []})
    for at, samples in ((0, [1, 3]), (1, [0]), (2, [])):
        one, expected = groups[at].group, whole[at].group
        assert [*one.prompt] == expected.prompt
        for sample in samples:
            assert [*one.samples[sample].ids] == expected.samples[sample].ids
            values = np.array(one.samples[sample].log_probs, np.float32)
            assert (values == np.array(expected.samples[sample].log_probs, np.float32)).all()
    assert groups[rank ^ 1].group.samples[rank].ids.__class__ is array
    assert isinstance(groups[rank ^ 1].group.samples[2].ids, Remote)

    share = dealt({} if rank else {one.position: one for one in whole})
    assert [one.position for one in share] == list(range(rank, GROUPS, 2))
    assert share == [whole[one.position] for one in share]
    dist.destroy_process_group()


def test_two_processes() -> None:
    assert ranks(2, exchange) == [0, 0]


def memory(folder: Path) -> None:
    """Python's peak while 48 groups of 8 samples are exchanged: as they are, and as outlines with a fetch of two."""
    dist.init_process_group("gloo")
    rank, peaks = dist.get_rank(), []
    for whole in (True, False):
        tracemalloc.start()
        local_groups = [drawn(position, 8, 256) for position in range(rank, 48, 2)]
        if whole:
            groups = interleaved(gathered(local_groups))
        else:
            groups = interleaved(announced(local_groups, lambda group: {}))
            Fetch(torch.device("cpu"))(groups, {at: [0, 1] for at in range(48)})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(groups) == 48
        del groups, local_groups
    (folder / f"{rank}.txt").write_text(f"{peaks[0]} {peaks[1]}")
    dist.destroy_process_group()


def test_memory_of_two_processes(tmp_path: Path) -> None:
    assert ranks(2, memory, tmp_path) == [0, 0]
    for rank in range(2):
        whole, share = map(int, (tmp_path / f"{rank}.txt").read_text().split())
        assert share < 0.6 * whole, f"rank {rank}: {whole / 1e6:.1f} MB whole, {share / 1e6:.1f} MB by shares"


class Counting(SelectLesson):
    """Notes the tokens that this process has, and those of all, when a round is complete."""

    folder: Path

    def learn(self, learned: Any, groups: Any) -> dict[str, float]:
        everything = sum(len(sample.ids) for one in groups for sample in one.group.samples)
        with (self.folder / f"{dist.get_rank()}.txt").open("a") as file:
            file.write(f"{held(groups)} {everything}\n")
        return super().learn(learned, groups)


def counted(folder: Path, *args: Any, **options: Any) -> Any:
    data = data_of(*args, rounds=rounds_of(draws=[Draw(n=12)]), **options)
    lesson: Any = data.lesson
    lesson.__class__ = Counting
    lesson.folder = folder
    return data


@pytest.mark.slow
def test_what_each_process_holds_of_a_round(tmp_path: Path) -> None:
    """Half of the samples, and the two of twelve that are trained on; rank 0 writes the files all the same."""
    options = {"devices": 2, "strategy": "ddp", "limit_val_batches": 0}
    assert ranks(2, trajectory, module_of, tmp_path, data=partial(counted, tmp_path), **options) == [0, 0]
    for rank in range(2):
        lines = (tmp_path / f"{rank}.txt").read_text().splitlines()
        shares = [int(local) / int(everything) for local, everything in map(str.split, lines)]
        assert len(shares) == 3
        assert max(shares) < 0.68, shares
        assert min(shares) > 0.4, shares
