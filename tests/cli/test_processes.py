"""Recognition of a job's launcher from its environment variables, and contradictions in them."""

from __future__ import annotations

import os

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.cli.cluster import SrunEnvironment, cluster_environment
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.main import main
from rlhf_lightning.cli.processes import (
    FIRST_RANK,
    Launch,
    device_count,
    environment_of_worker,
    first_rank,
    is_first_process,
    join_job,
    launch,
    launched,
    processes,
    rank,
    refuse_other_launchers,
)

SINGLE = {"strategy": "auto", "devices": 1}
DDP = {"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy"}, "devices": "auto", "num_nodes": 1}
#: A Slurm job of one node, as its batch script sees it.
BATCH = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "gpu[07-08]",
}  # fmt: skip
#: Shells inside of Slurm jobs.
SHELLS = {
    "the batch script": BATCH,
    "srun --pty bash": BATCH | {"SLURM_JOB_NAME": "bash", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
                                "SLURM_PTY_PORT": "40123"},
    "salloc": BATCH | {"SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": str(0xFFFFFFFA), "SLURM_STEP_NUM_TASKS": "1"},
    "salloc, older": {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"},
    "ssh to a node": {"SLURM_JOB_ID": "4711"},
}  # fmt: skip


def srun(tasks: int, task: int = 0, nodes: int = 1, **more: str) -> dict[str, str]:
    """A task of ``srun --ntasks``, which leaves SLURM_NTASKS_PER_NODE unset."""
    each = tasks // nodes
    return BATCH | {
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_NTASKS": str(tasks), "SLURM_NNODES": str(nodes), "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task % each), "SLURM_NODEID": str(task // each), "SLURM_STEP_NODELIST": "gpu[07-08]",
    } | more  # fmt: skip


def torchrun(world: int, number: int = 0, nodes: int = 1) -> dict[str, str]:
    return {
        "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": str(world), "GROUP_WORLD_SIZE": str(nodes), "RANK": str(number),
        "LOCAL_RANK": str(number % (world // nodes)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip


@pytest.mark.parametrize("environment", SHELLS.values(), ids=SHELLS)
def test_a_shell_inside_a_slurm_job_is_no_launch(environment):
    """Fails when any variable of Slurm's, or the number of tasks, is taken for several processes."""
    assert launch(environment) == Launch("rlhf")
    job = processes(DDP | {"devices": 2}, environment)
    assert isinstance(cluster_environment(job.launch), LightningEnvironment)
    assert (job.devices, job.nodes) == (2, 1)


@pytest.mark.parametrize("given", [{}, {"SLURM_NTASKS_PER_NODE": "1"}], ids=["without", "with SLURM_NTASKS_PER_NODE"])
def test_one_task_starts_its_processes_itself(given):
    """A job of submitit: the Slurm environment would train in one process, or refuse its own number."""
    job = processes(DDP | {"devices": 2}, srun(1) | given)
    assert job.launch == Launch("rlhf")
    assert isinstance(cluster_environment(job.launch), LightningEnvironment)


@pytest.mark.parametrize("name", ["train", "bash", "interactive"])
def test_tasks_of_srun_are_the_processes_of_the_job(name):
    """The job's name says nothing: salloc names it after the shell, and srun within it starts tasks all the same."""
    environment = srun(4, 3, nodes=2, SLURM_JOB_NAME=name)
    job = processes(DDP | {"num_nodes": 2}, environment)
    assert job.launch == Launch("srun", 4, 2, rank=3, local_rank=1)
    assert job.devices == 2
    assert rank(environment) == 3
    assert not is_first_process(environment)
    assert is_first_process(srun(4, 0, nodes=2))


def test_what_lightning_is_told_of_srun(monkeypatch):
    """Fails with Lightning's own environment: srun --ntasks=4 sets no SLURM_NTASKS_PER_NODE, and it raises."""
    for name, value in srun(4, 3, nodes=2).items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets it
    made = cluster_environment(launch())
    assert isinstance(made, SrunEnvironment)
    assert made.creates_processes_externally
    assert (made.world_size(), made.global_rank(), made.local_rank(), made.node_rank()) == (4, 3, 1, 1)
    assert made.main_address == "gpu07"
    assert made.main_port == 15000 + (16 * 4711) % 15000
    trainer = Trainer(
        accelerator="cpu", devices=2, num_nodes=2, strategy="ddp", plugins=[made], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (4, 3, 1, 1)


@pytest.mark.parametrize("number", [0, 1])
def test_processes_of_torchrun(number):
    job = processes(DDP, torchrun(2, number))
    assert job.launch == Launch("torchrun", 2, 1, number, number)
    assert job.devices == 2
    assert isinstance(cluster_environment(job.launch), TorchElasticEnvironment)


@pytest.mark.parametrize(
    ("strategy", "environment", "message"),
    [
        (SINGLE, torchrun(2), r"torchrun started 2 processes \(WORLD_SIZE=2\), and the job asks for strategy=single.*=1"
         r".*start it without torchrun, or set strategy=ddp.*strategy.devices=2"),
        (DDP | {"devices": 4}, torchrun(2), r"WORLD_SIZE=2.*strategy.devices=4 x strategy.num_nodes=1 = 4.*"
         r"--nproc-per-node=4"),
        (DDP | {"devices": 2}, torchrun(1), r"torchrun started 1 processes.*= 2.*--nproc-per-node=2"),
        (DDP, torchrun(4, nodes=2), r"on 2 nodes.*num_nodes=1.*set strategy.devices=2 strategy.num_nodes=2"),
        (DDP | {"devices": 1, "num_nodes": 4}, torchrun(4, nodes=2), r"on 2 nodes.*num_nodes=4"),
        (SINGLE, srun(2, 1), r"srun started 2 tasks \(SLURM_STEP_NUM_TASKS=2\).*strategy=single.*srun --nodes=1 "
         r"--ntasks-per-node=1"),
        (DDP | {"devices": 2}, srun(4), r"srun started 4 tasks.*devices=2 x strategy.num_nodes=1 = 2.*"
         r"--ntasks-per-node=2.*or set strategy.devices=4"),
        (DDP | {"devices": 2, "num_nodes": 2}, srun(1), r"num_nodes=2.*srun --nodes=2 --ntasks-per-node=2"),
        (DDP | {"devices": 2, "num_nodes": 2}, {}, r"strategy.num_nodes=2 asks for 2.*torchrun --nnodes=2 "
         r"--nproc-per-node=2.*NODE_RANK, MASTER_ADDR, MASTER_PORT"),
        (DDP | {"devices": 2, "num_nodes": 2}, {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, r"or set NODE_RANK there"),
        (DDP | {"num_nodes": 2}, {"NODE_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "not to auto"),
        (DDP | {"devices": 1, "num_nodes": 2}, {"NODE_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
         "from 0 to 1"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(strategy, environment, message):
    with pytest.raises(ConfigError, match=message):
        processes(strategy, environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_SIZE": "4", "PMI_RANK": "0"},
        {"JSM_NAMESPACE_SIZE": "6"},
        {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "trainer-0"},  # a pod of a cluster operator
    ],
)
def test_other_launchers_are_refused(environment):
    """Each of their processes would run the whole job."""
    with pytest.raises(ConfigError, match=r"started \d processes .* would run the whole job"):
        refuse_other_launchers(environment)


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "rlhf"),
        (torchrun(2), "torchrun"),
        (srun(2), "srun"),
        (SHELLS["srun --pty bash"] | {"PMI_SIZE": "2"}, "rlhf"),
        ({"WORLD_SIZE": "2"}, "rlhf"),
        ({"PMI_SIZE": "1"}, "rlhf"),
    ],
)
def test_commands_that_no_other_launcher_started(environment, launcher):
    refuse_other_launchers(environment)
    assert launch(environment).by == launcher


def test_two_machines_without_a_launcher(monkeypatch):
    """Fails when the address is taken for a leftover of another job: both machines would wait for a third."""
    strategy = DDP | {"devices": 2, "num_nodes": 2}
    meeting = {"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert processes(strategy, meeting).launch == Launch("rlhf")
    assert first_rank(strategy, meeting) == 2
    worker = environment_of_worker(strategy, meeting | {"LOCAL_RANK": "0", "HOME": "/root"})
    assert worker == meeting | {"HOME": "/root", FIRST_RANK: "2"}
    assert [rank(worker | {"LOCAL_RANK": local}) for local in "01"] == [2, 3]
    assert environment_of_worker(DDP, meeting) == {}
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(FIRST_RANK, "0")
    join_job(strategy)
    assert os.environ[FIRST_RANK] == "2"
    assert not is_first_process()
    join_job(SINGLE)  # the next job of this process is of one machine, whatever the machine is called
    assert is_first_process()


@pytest.mark.parametrize(
    ("devices", "count"),
    [(1, 1), ("2", 2), ([0, 3], 2), ("0,3", 2), ("1,", 1), ("auto", None), (-1, None), ("-1", None), (None, None)],
)
def test_devices_are_counted_as_lightning_does(devices, count):
    assert device_count(devices) == count


@pytest.mark.parametrize("command", ["generate", "quickstart"])
def test_commands_of_one_process_are_not_run_several_times(monkeypatch, capsys, command):
    """Each would write the same files."""
    for name, value in torchrun(2, 1).items():
        monkeypatch.setenv(name, value)
    assert main([command]) == 2
    assert f"(WORLD_SIZE=2), and rlhf {command} is one process" in capsys.readouterr().err


def test_nothing_is_launched_here():
    assert not launched({})
    assert launch({}) == Launch("rlhf")
