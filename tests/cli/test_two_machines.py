"""Two agents of torchrun on this machine, as on two: the numbers of one process, and clear ends."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest
import torch

from rlhf_lightning.cli.results import Result
from tests.cli.test_many_processes import PAIRS, RLHF, folder, port, together, torchrun

__all__ = ["folder"]  # a fixture

TINY = [
    "experiment=tiny", "trainer.max_steps=2", "trainer.accelerator=cpu", "callbacks=[step_seed,last]",
    "strategy.timeout=120",
]  # fmt: skip


def agent(meeting: str) -> list[str]:
    return torchrun("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{meeting}")


def numbered(node: int, meeting: str) -> list[str]:
    return torchrun("--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}", "--master-addr=127.0.0.1",
                    f"--master-port={meeting}")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_two_agents_have_the_numbers_of_one_process(tmp_path, method, strategy):
    data = ["data.source.size=64"] if method == "dpo" else ["data.batch_size=4", "method.rollout.group_size=4"]
    options = [*RLHF, "train", *TINY, f"method={method}", *data]
    single = [sys.executable, *options[:-1], options[-1], "paths.output_dir=one"]
    single.remove("strategy.timeout=120")
    ((code, printed),) = together((single, {}, tmp_path))
    assert code == 0, printed
    meeting = port()
    two = [*agent(meeting), *options, f"strategy={strategy}", "strategy.devices=1", "strategy.num_nodes=2"]
    done = together(*(([*two, "paths.output_dir=two"], {}, tmp_path) for _ in range(2)))
    assert [code for code, _ in done] == [0, 0], done
    one, other = Result.read(tmp_path / "one"), Result.read(tmp_path / "two")
    assert one is not None
    assert other is not None
    assert one.steps == other.steps == 2
    names = [name for name in one.metrics if not name.startswith(("train/time/", "train/throughput/", "train/memory/"))]
    assert {"train/loss"} <= set(names)
    for name in names:
        assert other.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4, abs=2e-5), name


@pytest.mark.slow
def test_other_options_on_the_second_machine_are_refused(folder):
    meeting = port()
    options = [*RLHF, "train", *PAIRS, "strategy=ddp", "strategy.devices=1", "strategy.num_nodes=2"]
    options.append("paths.output_dir=run")
    commands = [[*agent(meeting), *options], [*agent(meeting), *options, "optimizer.lr=0.5"]]
    done = together(*((command, {}, folder) for command in commands))
    assert all(code != 0 for code, _ in done), done
    printed = done[0][1] + done[1][1]
    assert "has other options than rank 0 on " in printed
    assert "optimizer.lr: " in printed
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shards", ["true", "false"])
def test_a_machine_that_dies_ends_the_other_and_leaves_a_whole_checkpoint(folder, shards):
    """The second agent and its process are killed at once, as a machine that loses power.

    The first one holds torchrun's store: where that dies, torchrun itself ends the others.
    """
    meeting, run = port(), folder / "run"
    options = [*RLHF, "train", *PAIRS, "strategy=fsdp", "strategy.devices=1", "strategy.num_nodes=2"]
    options += ["trainer.max_steps=100000", "trainer.max_epochs=100000", "trainer.limit_val_batches=0"]
    options += ["callbacks.last.every_n_steps=1", f"strategy.strategy.save_distributed_checkpoint={shards}"]
    options += ["strategy.timeout=30", "paths.output_dir=run"]
    files = [(folder / f"printed{node}.txt").open("w") for node in range(2)]
    agents = [
        subprocess.Popen([*numbered(node, meeting), *options], cwd=folder, stdout=file, stderr=subprocess.STDOUT)
        for node, file in enumerate(files)
    ]
    last = run / "checkpoints" / "last.ckpt"
    try:
        deadline = time.monotonic() + 300
        while not last.exists():
            assert time.monotonic() < deadline, (folder / "printed0.txt").read_text()
            assert agents[0].poll() is None, (folder / "printed0.txt").read_text()
            time.sleep(0.1)
        victim = psutil.Process(agents[1].pid)
        for process in [*victim.children(recursive=True), victim]:
            process.kill()
        assert agents[0].wait(120) != 0
    finally:
        for process in agents:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()
            process.wait()
        for file in files:
            file.close()
    printed = (folder / "printed0.txt").read_text()
    assert "one was killed (out of memory?), lost its machine, or never came" in printed
    result = Result.read(run)
    assert result is not None
    assert result.status == "failed"
    rest = torch.load(last / "meta.pt" if shards == "true" else last, weights_only=True)
    assert rest["global_step"] >= 1
    if shards == "true":
        assert (last / ".metadata").exists()


@pytest.mark.slow
def test_a_sweep_through_submitit_runs_each_job_apart(tmp_path):
    """As Slurm would start them, in background processes of this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    options = [option for option in TINY if option != "strategy.timeout=120"]
    options += ["-m", "hydra/launcher=submitit_local", "method=dpo", "data.source.size=64", "seed=1,2"]
    ((code, printed),) = together(
        ([sys.executable, *RLHF, "train", *options, "paths.output_dir=sweep", "paths.sweeps=none"], {}, tmp_path)
    )
    assert code == 0, printed
    results = [Result.read(tmp_path / "sweep" / job) for job in "01"]
    assert [result is not None and (result.status, result.steps) for result in results] == [("done", 2)] * 2
    assert len({result.metrics["train/loss"] for result in results if result is not None}) == 2
    assert any((tmp_path / "sweep" / ".submitit").iterdir())
