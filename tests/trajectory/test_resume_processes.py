"""Checkpoints of sharded runs on another number of processes, and in groups of them: the same rows, the same end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.strategies import FSDP2Strategy
from tests.trajectory.test_resume_elsewhere import STEPS, assert_close, end, rows_of, run


def _of(processes: int, **options: Any) -> tuple[int, dict[str, Any]]:
    return processes, {"devices": processes, "strategy": partial(FSDP2Strategy, **options)}


#: Processes and options of each way to run.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "ddp of 2": (2, {"devices": 2, "strategy": "ddp"}),
    **{f"shards of {count}": _of(count, save_distributed_checkpoint=True) for count in (1, 2, 4)},
    "file of 2": _of(2),
    "file of 2 x 2": _of(4, replicas=2),
    "shards of 2 x 2": _of(4, replicas=2, save_distributed_checkpoint=True),
}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(folder, WAYS["one"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("shards of 2", "shards of 1"),
        ("shards of 2", "shards of 4"),
        ("shards of 1", "shards of 2"),
        ("shards of 2 x 2", "shards of 2"),
        ("shards of 2", "shards of 2 x 2"),
        ("file of 2 x 2", "one"),
        ("file of 2 x 2", "ddp of 2"),
        ("one", "file of 2 x 2"),
        ("ddp of 2", "shards of 2 x 2"),
    ],
)
def test_another_number_of_processes_takes_the_same_steps(tmp_path, single, first, then):
    """Weights, optimiser, average, refreshed reference, running moments and the position in the data come along."""
    run(tmp_path, WAYS[first], 9)
    for file in tmp_path.glob("rows*.jsonl"):
        file.unlink()
    run(tmp_path, WAYS[then])
    assert rows_of(tmp_path) == {step: rows for step, rows in rows_of(single).items() if step >= 8}
    assert len(rows_of(tmp_path)) == STEPS - 8
    assert_close(end(single), end(tmp_path))
