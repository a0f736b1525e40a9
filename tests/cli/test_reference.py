"""The reference pass is paid once, however many jobs ask for it at the same moment and whoever is killed meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_lightning.cli import reference
from rlhf_lightning.cli.results import Result

ROWS = 24
OPTIONS = [
    "model=tiny_random", "trainer=debug", "reference=cached", "data=json", "data.source.path=pairs.jsonl",
    "data.validation=0.3", "data.batch_size=2", "callbacks.samples=null", "callbacks.export=null",
    "callbacks.best=null",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = [{"prompt": f"What is {a}?", "chosen": f"It is {a}.", "rejected": "No idea."} for a in range(ROWS)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", *OPTIONS, *options]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"RLHF_CACHE": str(folder / "cache")})


@pytest.mark.slow
def test_a_second_run_finds_what_the_first_has_computed(folder):
    for run in ("one", "two"):
        assert start(folder, f"paths.output_dir={run}").wait(100) == 0
    one, two = (Result.read(folder / run).reference for run in ("one", "two"))
    assert (one["computed"], one["cached"], one["saved"]) == (ROWS, 0, 0)
    assert one["seconds"] > 0
    assert (two["computed"], two["cached"]) == (0, ROWS)
    assert two["saved"] == pytest.approx(one["seconds"], abs=0.01)
    assert f"{ROWS} rows from the cache, ~" in (folder / "two/train.log").read_text()


@pytest.mark.slow
def test_runs_at_the_same_moment_compute_every_row_once(folder):
    """Fails without the lock: both find nothing and compute everything."""
    running = [start(folder, f"paths.output_dir=run{run}", f"seed={run}") for run in range(3)]
    assert [process.wait(200) for process in running] == [0, 0, 0]
    passes = [Result.read(folder / f"run{run}").reference for run in range(3)]
    assert sum(one["computed"] for one in passes) == ROWS
    assert sum(one["cached"] for one in passes) == 2 * ROWS


def _hold(path: Path, held) -> None:
    lock = reference._locked(path, None)
    held.set()
    time.sleep(60)
    lock.release()


@pytest.mark.slow
def test_a_killed_holder_lets_the_others_in(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "lock", held))
    holder.start()
    assert held.wait(60)
    impatient = reference._locked(tmp_path / "lock", 0.1)
    assert not impatient.is_locked, "two processes hold the lock"
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(10)
    started = time.monotonic()
    lock = reference._locked(tmp_path / "lock", None)
    assert lock.is_locked
    assert time.monotonic() - started < 5
    lock.release()


def test_the_cost_of_a_token_survives_a_line_that_a_kill_cut_short(tmp_path):
    costs = tmp_path / reference.COSTS
    assert reference.seconds_a_token(costs) == 0
    reference._note(costs, {"rows": 2, "tokens": 100, "seconds": 1.0})
    with costs.open("a") as file:
        file.write('{"rows": 3, "tok')
    reference._note(costs, {"rows": 2, "tokens": 300, "seconds": 3.0})
    assert reference.seconds_a_token(costs) == pytest.approx(0.01)
