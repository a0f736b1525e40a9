"""The processes of a job: who started them, which of them this one is, and whether they are as many as it asks for.

``rlhf train`` starts the processes of a job itself, on one machine, also inside a Slurm job. ``torchrun``, and ``srun``
with several tasks, start them from outside: then every process is a command of its own, and their number has to be
``strategy.devices`` x ``strategy.num_nodes``. Several machines without either have one command each, which are told
from each other by ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``. Everything else is refused before anything loads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_lightning.cli.errors import ConfigError

Environment = Mapping[str, str]

#: Rank of the first process that a command starts on its machine; set for those processes alone.
FIRST_RANK = "RLHF_FIRST_RANK"
#: What launchers say to the processes of a job; the processes of another job must not inherit it.
DISTRIBUTED = (
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GLOBAL_RANK",
    "RANK",
    "GROUP_RANK",
)
#: What a command on one of several machines needs to find the others.
_MEETING = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
#: Variables with which other launchers say how many processes they started, and the launcher.
_FOREIGN = {
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "WORLD_SIZE": "another launcher",
}
#: Steps of Slurm that are no launch of several tasks have numbers from here on: the batch script, a shell of salloc.
_SPECIAL_STEPS = 0xFFFF0000


@dataclass(frozen=True)
class Launch:
    """Launcher of a job's processes, and the rank of this one."""

    by: Literal["rlhf", "torchrun", "srun"]
    processes: int = 1  #: of the job; of ``rlhf``, which starts what the strategy asks for: 1
    nodes: int = 1
    rank: int = 0
    local_rank: int = 0

    @property
    def evidence(self) -> str:
        """Action of the launcher, as the beginning of a sentence."""
        name, variable = ("tasks", "SLURM_STEP_NUM_TASKS") if self.by == "srun" else ("processes", "WORLD_SIZE")
        on = f" on {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.by} started {self.processes} {name}{on} ({variable}={self.processes})"


@dataclass(frozen=True)
class Processes:
    """The processes of a job as the Trainer gets them."""

    launch: Launch
    devices: Any  #: of a machine: a number, a list, or ``auto``
    nodes: int


def launch(environment: Environment = os.environ) -> Launch:
    """Find the launcher of this process.

    A process is a task of ``srun`` where it belongs to a numbered step of several tasks. Variables of Slurm alone say
    nothing: a batch script has them, and so has an interactive shell (``srun --pty``, ``salloc``), whose command is
    the only one. A step of one task, as of submitit, is a command like any other.

    Args:
        environment: variables of the process.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return Launch(
            "torchrun",
            _number(environment, "WORLD_SIZE", 1),
            _number(environment, "GROUP_WORLD_SIZE", 1),
            _number(environment, "RANK", 0),
            _number(environment, "LOCAL_RANK", 0),
        )
    if (tasks := _tasks(environment)) > 1:
        nodes = _number(environment, "SLURM_STEP_NUM_NODES", _number(environment, "SLURM_NNODES", 1))
        return Launch("srun", tasks, nodes, int(environment["SLURM_PROCID"]), _number(environment, "SLURM_LOCALID", 0))
    local = _number(environment, "LOCAL_RANK", 0)
    rank = _number(environment, "RANK", _number(environment, FIRST_RANK, 0) + local)
    return Launch("rlhf", rank=rank, local_rank=local)


def launched(environment: Environment = os.environ) -> bool:
    """Check whether torchrun or srun has started this process as one of several."""
    return launch(environment).by != "rlhf"


def rank(environment: Environment = os.environ) -> int:
    """The number of this process among those of its job."""
    return launch(environment).rank


def is_first_process(environment: Environment = os.environ) -> bool:
    """Check whether this process reports for its job and writes what the processes have in common."""
    return rank(environment) == 0


def processes(strategy: Mapping[str, Any] | None, environment: Environment = os.environ) -> Processes:
    """The processes that a job has.

    Args:
        strategy: options of the group ``strategy``.
        environment: variables of the process.

    Raises:
        ConfigError: the launcher started another number of processes than the strategy asks for, or several machines
            have no launcher.
    """
    options = strategy or {}
    devices, nodes = options.get("devices", "auto"), int(options.get("num_nodes", 1))
    started, count = launch(environment), device_count(devices)
    if started.by != "rlhf":
        return Processes(started, _launched_devices(started, options, count), nodes)
    if nodes > 1:
        _check_nodes(count, nodes, environment)
    return Processes(started, devices, nodes)


def join_job(strategy: Mapping[str, Any] | None) -> Processes:
    """Check the processes of the job that this process takes part in, and note which of them it is.

    Raises:
        ConfigError: see :func:`processes`.
    """
    joined = processes(strategy)
    first = 0 if joined.launch.by != "rlhf" else first_rank(strategy)
    if first:
        os.environ[FIRST_RANK] = str(first)
    else:  # of a job before
        os.environ.pop(FIRST_RANK, None)
    return joined


def environment_of_worker(strategy: Mapping[str, Any] | None, environment: Environment = os.environ) -> dict[str, str]:
    """Variables for a process that runs a job apart: without those of the launcher of another job."""
    kept = {name: value for name, value in environment.items() if name not in (*DISTRIBUTED, FIRST_RANK)}
    if int((strategy or {}).get("num_nodes", 1)) > 1:
        kept |= {name: environment[name] for name in _MEETING}
        kept[FIRST_RANK] = str(first_rank(strategy, environment))
    return kept


def first_rank(strategy: Mapping[str, Any] | None, environment: Environment = os.environ) -> int:
    """Rank of the first process that the command starts on this machine."""
    options = strategy or {}
    if int(options.get("num_nodes", 1)) == 1:
        return 0
    return int(environment["NODE_RANK"]) * (device_count(options.get("devices")) or 1)


def refuse_other_launchers(environment: Environment = os.environ) -> None:
    """Refuse a command of which a launcher that is not known here has started several.

    Raises:
        ConfigError: each of them would run the whole job.
    """
    if launched(environment):
        return
    for variable, name in _FOREIGN.items():
        # A shell of srun has PMI_SIZE too; WORLD_SIZE alone is the wish of somebody who starts processes by hand.
        of_shell = variable == "PMI_SIZE" and "SLURM_JOB_ID" in environment
        count = _number(environment, variable, 1)
        if count > 1 and not of_shell and (variable != "WORLD_SIZE" or "RANK" in environment):
            raise ConfigError(
                f"{name} started {count} processes ({variable}={count}), and each would run the whole job: start one "
                "command, which starts its processes itself (strategy=ddp strategy.devices=...), or use torchrun or "
                "srun"
            )


def several_commands(strategy: Mapping[str, Any] | None) -> bool:
    """Check whether other commands than this one take part in a job, on this machine or on others."""
    return launched() or int((strategy or {}).get("num_nodes", 1)) > 1


def several_processes(strategy: Mapping[str, Any] | None) -> bool:
    """Check whether a job runs in more than one process, or asks for a strategy that sets up process groups."""
    options = strategy or {}
    one_device = device_count(options.get("devices", 1)) == 1
    return not (one_device and options.get("num_nodes", 1) == 1 and options.get("strategy", "auto") == "auto")


def device_count(devices: Any) -> int | None:
    """Number of devices per machine in ``strategy.devices``; None: all of them."""
    if devices is None or str(devices) in ("auto", "-1"):
        return None
    if isinstance(devices, int):
        return devices
    names = devices.split(",") if isinstance(devices, str) else list(devices)
    if isinstance(devices, str) and len(names) == 1:
        return int(devices)
    return len([name for name in names if str(name).strip()])


def _launched_devices(started: Launch, options: Mapping[str, Any], count: int | None) -> Any:
    """Devices of a machine, held against the number of processes that are there."""
    nodes = int(options.get("num_nodes", 1))
    each = started.processes // started.nodes
    if count is None and nodes == started.nodes and each * nodes == started.processes:
        return each
    if count is not None and count * nodes == started.processes and nodes == started.nodes:
        return options.get("devices")
    devices = options.get("devices", "auto")
    count_option = "" if count is None else f" = {count * nodes}"
    group = "strategy=single: " if not several_processes(options) else ""
    asked = f"{group}strategy.devices={devices} x strategy.num_nodes={nodes}{count_option}"
    strategy = "strategy=ddp (or fsdp) " if group else ""
    equal = f"{strategy}strategy.devices={each} strategy.num_nodes={started.nodes}"
    raise ConfigError(
        f"{started.evidence}, and the job asks for {asked}: {_command(started.by, nodes, count or each)}, or set "
        f"{equal}" + ("; started alone, rlhf starts the others itself" if nodes == 1 < (count or each) else "")
    )


def _command(by: str, nodes: int, devices: int) -> str:
    """Instruction to start that many processes, as an imperative."""
    if by == "srun":
        return f"start it with srun --nodes={nodes} --ntasks-per-node={devices}"
    if nodes * devices == 1:
        return "start it without torchrun"
    return f"start it with torchrun --nnodes={nodes} --nproc-per-node={devices}"


def _check_nodes(count: int | None, nodes: int, environment: Environment) -> None:
    """Refuse several machines whose commands could not find each other: they would wait for each other for ever."""
    missing = [name for name in _MEETING if not environment.get(name)]
    each = count or "<devices>"
    job = f"this command starts processes on one machine, and strategy.num_nodes={nodes} asks for {nodes}"
    if missing:
        slurm = ""
        if "SLURM_JOB_ID" in environment:
            slurm = f"srun --nodes={nodes} --ntasks-per-node={each} rlhf train ..., or "
        raise ConfigError(
            f"{job}: start it on every machine with {slurm}torchrun --nnodes={nodes} --nproc-per-node={each} "
            "--node-rank=<0 on the first> --master-addr=<the first> --master-port=29500 -m rlhf_lightning.cli.main "
            f"train ..., or set {', '.join(missing)} there (NODE_RANK=0 MASTER_ADDR=<the first> MASTER_PORT=29500 rlhf "
            "train ...)"
        )
    if count is None:
        raise ConfigError(f"{job}: set strategy.devices to the number of devices of each machine, not to auto")
    if not 0 <= int(environment["NODE_RANK"]) < nodes:
        raise ConfigError(
            f"NODE_RANK={environment['NODE_RANK']} is the number of this machine and must be from 0 to {nodes - 1}, as "
            f"strategy.num_nodes={nodes}"
        )


def _tasks(environment: Environment) -> int:
    """Tasks of the step of Slurm that this process is one of; 0 where it is not a task of srun's."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    interactive = "SLURM_PTY_PORT" in environment
    if not step.isdigit() or int(step) >= _SPECIAL_STEPS or interactive or "SLURM_PROCID" not in environment:
        return 0
    return _number(environment, "SLURM_STEP_NUM_TASKS", _number(environment, "SLURM_NTASKS", 1))


def _number(environment: Environment, name: str, default: int) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else default
