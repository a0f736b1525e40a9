"""Jobs of several processes as launchers start them: two machines on one, tasks of srun, errors of another process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.cli.results import Result

ROOT = Path(__file__).parents[2]
RLHF = ["-m", "rlhf_lightning.cli.main"]
QUICK = [
    "model=tiny_random", "trainer.accelerator=cpu", "trainer.max_steps=4", "data=json", "data.batch_size=4",
    "data.spec.cache=false", "callbacks.samples=null", "callbacks.export=null", "callbacks.best=null",
    "trainer.enable_progress_bar=false", "strategy.timeout=120",
]  # fmt: skip
PAIRS = [*QUICK, "data.source.path=pairs.jsonl", "data.validation=0.3"]
REWARD = [
    *QUICK, "method=grpo", "reward=function", "reward.target=tests.helpers.failing_reward.second_process",
    "allow_targets=[tests]", "data.source.path=pairs.jsonl", "data.validation=null", "rollout.max_new_tokens=4",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {a}?", "chosen": f"It is {a}.", "rejected": "No idea."} for a in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options]


def together(*commands: tuple[list[str], dict[str, str], Path]) -> list[tuple[int, str]]:
    """Run commands at the same time; exit code and what each printed."""
    base = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    base |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, env=base | more, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command, more, cwd in commands
    ]
    try:
        printed = [process.communicate(timeout=500)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, printed, strict=True)]


def machines(how: str, strategy: str, cwds: list[Path], output: str = "run") -> list[tuple[int, str]]:
    """One command on each of two machines, both of which are this one."""
    meeting = port()
    options = ["train", *PAIRS, f"strategy={strategy}", "strategy.devices=1", "strategy.num_nodes=2"]
    options.append(f"paths.output_dir={output}")
    commands = []
    for node, cwd in enumerate(cwds):
        variables = {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting}
        launcher = torchrun("--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}", "--master-addr=127.0.0.1",
                            f"--master-port={meeting}")  # fmt: skip
        command = [sys.executable] if how == "by hand" else launcher
        commands.append(([*command, *RLHF, *options], variables if how == "by hand" else {}, cwd))
    return together(*commands)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "strategy"), [("by hand", "ddp"), ("torchrun", "fsdp")])
def test_two_machines_train_together(folder, how, strategy):
    done = machines(how, strategy, [folder, folder], str(folder / "run"))
    assert [code for code, _ in done] == [0, 0], done
    result = Result.read(folder / "run")
    assert result is not None
    assert (result.status, result.steps) == ("done", 4)
    assert {file.name for file in (folder / "run").glob("train*.log")} == {"train.log", "train.1.log"}
    assert (folder / "run" / "checkpoints" / "last.ckpt").exists()
    if how == "torchrun":  # there is nothing left to do, which the first process decides
        done = machines(how, strategy, [folder, folder], str(folder / "run"))
        assert [code for code, _ in done] == [0, 0], done
        assert "nothing was left to do" in done[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["by hand", "torchrun"])
def test_folders_that_are_not_shared_are_refused_by_name(folder, how):
    """Each machine has a folder of that name of its own."""
    cwds = [folder / name for name in ("a", "b")]
    for cwd in cwds:
        cwd.mkdir()
        (cwd / "pairs.jsonl").write_text((folder / "pairs.jsonl").read_text())
    done = machines(how, "ddp", cwds)
    assert all(code != 0 for code, _ in done), done
    assert f"paths.output_dir={cwds[0]}/run: rank 1 on " in done[0][1]
    assert f"(it has {cwds[1]}/run)" in done[0][1]
    assert "a file system that all machines share" in (Result.read(cwds[0] / "run") or Result("done")).error


@pytest.mark.slow
def test_a_machine_that_does_not_come_is_not_waited_for_for_ever(folder):
    variables = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    options = [*PAIRS, "strategy=ddp", "strategy.devices=1", "strategy.num_nodes=2", "strategy.timeout=5"]
    options.append("paths.output_dir=run")
    ((code, printed),) = together(([sys.executable, *RLHF, "train", *options], variables, folder))
    assert code == 1
    assert "imed out" in printed


@pytest.mark.slow
def test_tasks_of_srun_are_one_job(folder):
    """Without SLURM_NTASKS_PER_NODE, as srun --ntasks=2 leaves it; fails when each task claims the run's folder.

    One validation row, so one of the tasks has none.
    """
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1",
           "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "127.0.0.1",
           "MASTER_PORT": port()}  # fmt: skip
    options = [*QUICK, "data.source.path=pairs.jsonl", "data.validation=0.05", "strategy=ddp", "paths.output_dir=run"]
    options.append("trainer.max_steps=5")  # an epoch, with the three pairs that are left over after four steps
    command = [sys.executable, *RLHF, "train", *options]
    tasks = [job | {"SLURM_PROCID": number, "SLURM_LOCALID": number} for number in "01"]
    done = together(*((command, task, folder) for task in tasks))
    assert [code for code, _ in done] == [0, 0], done
    assert "done in" in done[0][1]
    assert done[1][1] == "", "the other task is silent"
    result = Result.read(folder / "run")
    assert result is not None
    assert result.metrics["val/loss"] > 0


@pytest.mark.slow
def test_a_slurm_job_of_one_task_starts_its_processes_itself(folder):
    """As submitit starts it; with Lightning's Slurm environment one process trains, or the job is refused."""
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1",
           "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1",
           "SLURM_JOB_NAME": "train"}  # fmt: skip
    options = [*PAIRS, "strategy=ddp", "strategy.devices=2", "paths.output_dir=run"]
    ((code, printed),) = together(([sys.executable, *RLHF, "train", *options], job, folder))
    assert code == 0, printed
    assert (folder / "run" / "train.1.log").exists(), "there was no second process"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rlhf", "torchrun"])
def test_the_error_of_another_process_is_the_job_s(folder, how):
    """Fails when rank 0 reports that its connection is gone."""
    options = ["train", *REWARD, "strategy=ddp", "strategy.devices=2", "paths.output_dir=run"]
    command = [sys.executable] if how == "rlhf" else torchrun("--nproc-per-node=2")
    ((code, printed),) = together(([*command, *RLHF, *options], {}, folder))
    assert code == (2 if how == "rlhf" else 1), printed
    error = f"rank 1 on {socket.gethostname()}: reward 'second_process' raised KeyError: 'the grader has no entry"
    result = Result.read(folder / "run")
    assert result is not None
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.startswith(error)
    assert f"error: {error}" in printed
    assert error in (folder / "run" / "train.log").read_text()
    assert "failing_reward.py" in (folder / "run" / "error.log").read_text()
    assert "failing_reward.py" in (folder / "run" / "errors" / "rank-1.txt").read_text()


@pytest.mark.slow
def test_torchrun_with_one_process_too_many_is_refused(folder):
    command = [*torchrun("--nproc-per-node=2"), *RLHF, "train", *QUICK[:-1], "data.source.path=pairs.jsonl"]
    ((code, printed),) = together(([*command, "paths.output_dir=run"], {}, folder))
    assert code != 0
    assert printed.count("torchrun started 2 processes (WORLD_SIZE=2), and the job asks for strategy=single") == 1
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("example", ["fabric_dpo.py", "fabric_grpo.py"])
def test_the_command_of_a_fabric_example(tmp_path, example):
    """As it stands in its docstring."""
    lines = (ROOT / "examples" / example).read_text().splitlines()
    command = next(line for line in lines if line.startswith("fabric run")).split()
    fabric = Path(sys.executable).with_name(command[0])
    ((code, printed),) = together(([str(fabric), *command[1:]], {}, ROOT))
    assert code == 0, printed
    assert "step 20: loss" in printed or "mean reward" in printed
