"""After a kill or stop of a command: no process trains on unseen, and the result has the progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from rlhf_lightning.cli.results import Result

ENDLESS = [
    "model=tiny_random", "trainer=debug", "trainer.max_steps=100000", "trainer.max_epochs=100000",
    "trainer.limit_val_batches=0", "data=json", "data.source.path=pairs.jsonl", "data.validation=0.3",
    "data.batch_size=2", "data.spec.cache=false", "callbacks.samples=null", "callbacks.export=null",
    "callbacks.best=null", "callbacks.last.every_n_steps=5",
]  # fmt: skip

#: The command line, which ends with the process of this test: nothing else would end an endless run. Ctrl-C is as a
#: terminal gives it: what a non-interactive shell starts in the background ignores it.
GUARDED = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from rlhf_lightning.cli.worker import die_with_parent\n"
    "die_with_parent()\n"
    "from rlhf_lightning.cli.main import main\n"
    "sys.exit(main())\n"
)


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = [{"prompt": f"What is {a}?", "chosen": f"It is {a}.", "rejected": "No idea."} for a in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, "-c", GUARDED, "train", *ENDLESS, *options]
        return subprocess.Popen(command, cwd=folder, text=True, stdout=output, stderr=output)


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        (["strategy=ddp", "strategy.devices=2", "paths.output_dir=run"], ["run"]),
        (["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", "paths.output_dir=s"], ["s/0", "s/1"]),
    ],
    ids=["worker-and-its-ranks", "joblib"],
)
def test_no_process_outlives_a_killed_command(folder, options, jobs):
    """Fails when the workers are left to themselves: they would train for hours, and write beside the next run."""
    if "hydra/launcher=joblib" in options:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = start(folder, *options)
    for job in jobs:
        ready = folder / job / "checkpoints" / "last.ckpt"
        wait_for(lambda ready=ready: ready.exists() or process.poll() is not None, 120, f"{ready} did not come")
    assert process.poll() is None
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=15)
    for child in alive:
        child.kill()
    assert not alive, f"{len(alive)} of {len(children)} processes lived on"


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stopped_run_says_how_far_it_came(folder, number):
    """Fails when the result of a stop knows nothing of the trainer, or the last checkpoint is an earlier step's."""
    process, last = start(folder, "paths.output_dir=run"), folder / "run/checkpoints/last.ckpt"
    try:
        wait_for(lambda: last.exists() or process.poll() is not None, 300, "no checkpoint")
        process.send_signal(number)
        assert process.wait(300) == 128 + number
    finally:
        process.kill()
        process.wait()
    result = Result.read(folder / "run")
    assert torch.load(last, weights_only=True)["global_step"] == result.steps == result.saved
    assert f"stopped and saved after step {result.steps}; the same command" in (folder / "output.txt").read_text()
    assert (result.status, result.exit_code, result.value) == ("stopped", 128 + number, None)
    assert result.steps >= 5
    assert result.metrics["train/loss"] > 0
    assert result.versions["torch"]


def test_a_process_ends_with_its_parent(tmp_path):
    """The parent is gone before the child looks for the first time: the worst moment."""
    code = (
        "import os, sys, time\n"
        "from rlhf_lightning.cli import worker\n"
        "worker._LOOK_EVERY = 0.05\n"
        "worker.die_with_parent(int(sys.argv[1]))\n"
        "time.sleep(60)\n"
    )
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    child = subprocess.Popen([sys.executable, "-c", code, str(gone.pid)])
    assert child.wait(60) == -signal.SIGKILL
    child = subprocess.Popen([sys.executable, "-c", code, str(os.getpid())])
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(5)
    child.kill()
