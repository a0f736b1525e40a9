"""Agreement of a job's processes, checked before any weight is loaded.

On several machines a folder may be another one under the same name, and a process that finds no checkpoint in it would
begin while the others resume: both would wait for each other. So the first process decides, the others are told, and
what one of them does not see is an error of all, with its name.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig

from rlhf_lightning.checkpointing import sharded_error
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.identity import between_machines, listed, plain
from rlhf_lightning.cli.processes import launched
from rlhf_lightning.cli.versions import source_digest, versions
from rlhf_lightning.strategies import FSDP2Strategy

T = TypeVar("T")

#: Seconds that a new file may take to be seen on another machine.
_PATIENCE = 10.0


def meet(trainer: Trainer, module: LightningModule) -> None:
    """Connect the processes of a job now, where others than this command may have started them.

    The processes that a command starts on its own machine have the same folders, and are started when training begins.
    """
    launcher = trainer.strategy.launcher
    if trainer.world_size == 1 or launcher is None or not (launched() or trainer.num_nodes > 1):
        return
    trainer.strategy.connect(module)  # FSDP2 tells the module its mesh
    launcher.launch(trainer.strategy.setup_environment, trainer=trainer)


def agreed(trainer: Trainer, value: T) -> T:
    """Return the value of the first process; a collective call if processes are connected."""
    return trainer.strategy.broadcast(value)


def check_seen(trainer: Trainer, folder: Path, option: str) -> None:
    """Make sure that every process sees what the first one writes to a folder; a collective call.

    Args:
        trainer: of the job.
        folder: of this process.
        option: that names it.

    Raises:
        ConfigError: on every process, when one does not.
    """
    if not dist.is_initialized():
        return
    marker = folder / agreed(trainer, f".seen.{uuid.uuid4().hex}")
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    trainer.strategy.barrier()
    views = _gathered((str(folder), _appears(marker)))
    if trainer.is_global_zero:
        marker.unlink()
    first_host, (first_folder, _) = views[0]
    for rank, (host, (other, seen)) in enumerate(views):
        if not seen:
            works = f" (it has {other})" if other != first_folder else ""
            raise ConfigError(
                f"{option}={first_folder}: rank {rank} on {host} does not see what rank 0 on {first_host} writes "
                f"there{works}; choose a folder on a file system that all machines share, by its absolute path"
            )


def check_files_exist(trainer: Trainer, paths: Sequence[Path]) -> None:
    """Make sure that every process finds the checkpoints that are to be loaded; a collective call.

    Raises:
        ConfigError: on every process, when one does not.
    """
    if not dist.is_initialized():
        return
    for rank, (host, missing) in enumerate(_gathered([str(path) for path in paths if not path.exists()])):
        if missing:
            raise ConfigError(
                f"rank {rank} on {host} does not find {missing[0]}: checkpoints must lie on a file system that all "
                "machines share"
            )


def check_same(trainer: Trainer, content: Mapping[str, str]) -> None:
    """Make sure that every process has read the same; a collective call.

    Args:
        trainer: of the job.
        content: digests by what they are of.

    Raises:
        ConfigError: on every process, when one has read something else.
    """
    if not dist.is_initialized():
        return
    views = _gathered(dict(content))
    for rank, (host, other) in enumerate(views):
        if different := [name for name in content.keys() | other.keys() if other.get(name) != views[0][1].get(name)]:
            raise ConfigError(
                f"{', '.join(sorted(different))}: rank {rank} on {host} has read something else than rank 0 on "
                f"{views[0][0]}; give every machine the same files"
            )


def check_same_job(cfg: DictConfig) -> None:
    """Make sure that all processes run the same job with the same code; a collective call.

    Args:
        cfg: of this process.

    Raises:
        ConfigError: on every process, when one has another option or version, with both values.
    """
    if not dist.is_initialized():
        return
    code = versions() | {"source of rlhf-lightning": source_digest()}
    views = _gathered((plain(cfg), code))
    first_host, (first, first_code) = views[0]
    for rank, (host, (options, code)) in enumerate(views):
        if different := between_machines(first, options):
            raise ConfigError(
                f"rank {rank} on {host} has other options than rank 0 on {first_host}: {listed(different)} "
                "(rank 0 -> this rank); give the same command on every machine"
            )
        names = sorted(name for name in first_code.keys() | code.keys() if first_code.get(name) != code.get(name))
        if names:
            pairs = ", ".join(f"{name}: {first_code.get(name, 'none')} -> {code.get(name, 'none')}" for name in names)
            raise ConfigError(
                f"rank {rank} on {host} has another version than rank 0 on {first_host}: {pairs} "
                "(rank 0 -> this rank); install the same packages on every machine"
            )


def check_readable(trainer: Trainer, checkpoint: str | None) -> None:
    """Refuse a checkpoint that the strategy cannot read.

    Raises:
        ConfigError: it is sharded, and the strategy is not.
    """
    if checkpoint is not None and Path(checkpoint).is_dir() and not isinstance(trainer.strategy, FSDP2Strategy):
        raise ConfigError(sharded_error(checkpoint))


def _gathered(value: T) -> list[tuple[str, T]]:
    """The hosts and values of all processes, by rank."""
    views: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(views, (socket.gethostname(), value))
    return views


def _appears(path: Path) -> bool:
    """Check whether a file is there, or comes."""
    deadline = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
