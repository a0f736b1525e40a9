"""A run's folder: one run, one configuration, one process at a time.

``config.yaml`` is what was run. ``job.json`` says more of it: the command, the digest that sweeps look for, the
method's name, the run's id (loggers have it), digests of the data's content and of the weights it started from, each
resume with what it changed, and the process that runs it. A command that would resume another computation is refused
before anything is loaded or written; what may change is listed in :mod:`rlhf_lightning.cli.identity`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from rlhf_lightning.cli.config_file import read_data
from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.identity import (
    Comparison,
    Difference,
    compare,
    digest,
    listed,
    may_lengthen,
    method_name,
    plain,
)
from rlhf_lightning.cli.processes import is_first_process
from rlhf_lightning.cli.results import Result
from rlhf_lightning.files import remove, write_atomically

log = logging.getLogger(__name__)

JOB, CONFIG = "job.json", "config.yaml"
#: Values of ``ckpt_path`` that are no path.
_WORDS = (None, "auto", "last")
#: What a run writes along its training.
_LOGS = (
    "metrics.csv",
    "tensorboard/*",
    "samples/step_*.jsonl",
    "implicit_rewards.npz",
    "rollouts/*.jsonl",
)
#: Folders that this process works in, or the command that started it.
_HELD: set[Path] = set()


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep every other process out of a folder; the lock dies with this process.

    The first process of a job holds it for the others. Within this process the folder may be held again.

    Args:
        folder: of a job.
        wait: until the other process is done.

    Raises:
        ConfigError: another process works in the folder.
    """
    resolved = folder.resolve()
    if resolved in _HELD or not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = read_job(folder).get("process") or {}
        owner = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
        if not wait:
            raise ConfigError(
                f"{owner} is running in {folder}: wait until it ends, or set another paths.output_dir"
            ) from None
        say(f"       {owner} is running it in {folder}; waiting")
        lock.acquire()
    _HELD.add(resolved)
    try:
        # What an earlier process offered and never made true, a killed one say, is no longer on offer.
        note(folder, process={"pid": os.getpid(), "host": socket.gethostname()}, pending=None)
        yield
    finally:
        _HELD.discard(resolved)
        if (folder / JOB).exists():
            note(folder, process=None, pending=None)
        lock.release()


def held_by_command(folder: Path) -> None:
    """Say that the command which started this process holds a folder for it."""
    _HELD.add(folder.resolve())


def read_job(folder: Path) -> dict[str, Any]:
    """Read ``job.json``; empty if it is missing or unreadable."""
    try:
        content = json.loads((folder / JOB).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def note(folder: Path, **entries: Any) -> None:
    """Write entries of ``job.json``, whole or not at all; None removes one."""
    content = {name: value for name, value in (read_job(folder) | entries).items() if value is not None}
    _write(folder / JOB, json.dumps(content) + "\n")


@dataclass
class RunFolder:
    """The folder of one ``rlhf train``: what run it holds, and whether this command resumes it.

    Attributes:
        cfg: of the command, with its folder.
        path: the folder.
        changed: what the command changes of the run that it resumes.
        occupied: there is a run in it that left weights or a result.
    """

    cfg: DictConfig
    path: Path = field(init=False)
    changed: list[Difference] = field(init=False, default_factory=list)
    occupied: bool = field(init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.cfg.paths.output_dir)
        self.occupied = occupied(self.path) or bool(self._saved())

    @property
    def from_scratch(self) -> bool:
        """True if the command replaces what the folder holds."""
        return bool(self.cfg.rerun) or self.cfg.ckpt_path is None

    @property
    def start(self) -> Path | None:
        """The checkpoint whose weights the run starts from."""
        return start_of(self.cfg, self.path)

    def _saved(self) -> list[Path]:
        """Outputs that a run has saved in its folder, and other folders where callbacks of this run would save."""
        nodes = [node for node in (self.cfg.get("callbacks") or {}).values() if node and node.get("dirpath")]
        elsewhere = [Path(node.dirpath) / name for node in nodes for name in ("last.ckpt", "last.ckpt.old")]
        return list(dict.fromkeys([*checkpoints(self.path), *(path for path in elsewhere if path.exists())]))

    def check(self) -> None:
        """Refuse to resume another run. Reads small files only.

        Raises:
            ConfigError: the folder is that of an evaluation, or holds a run of another configuration.
        """
        check_command(self.path, "train")
        if not self.occupied or self.from_scratch or not (self.path / CONFIG).is_file():
            return
        comparison = self._compare()
        if comparison.refused:
            raise ConfigError(
                f"{self.path} holds a run of another configuration ({listed(comparison.refused)}), and a folder is one "
                "run: set another paths.output_dir (with ckpt_path=<a checkpoint> to start from these weights), or "
                "rerun=true to run this from scratch in its place"
            )
        self.changed = comparison.allowed

    @property
    def finished(self) -> Result | None:
        """The result of the folder's run where the command asks for nothing more of it; known after :meth:`check`."""
        result = Result.read(self.path)
        resumes = self.occupied and not self.from_scratch and (self.cfg.ckpt_path in _WORDS or self.start is not None)
        if result is None or result.status != "done" or not resumes or not (self.path / CONFIG).is_file():
            return None
        return None if any(may_lengthen(difference) for difference in self.changed) else result

    def _compare(self) -> Comparison:
        before = read_data(self.path / CONFIG)
        trees = []
        for cfg in (before, self.cfg):
            start = start_of(cfg, self.path)
            trees.append({**plain(cfg), "ckpt_path": None if start is None else str(start)})
        names = [read_job(self.path).get("method"), method_name()]
        comparison = compare(*trees)
        if None not in names and names[0] != names[1]:  # one computation under two names is two rows of a comparison
            comparison.refused.insert(0, Difference("method", *names))
        return comparison

    def check_content(self, content: Mapping[str, str]) -> None:
        """Refuse data, or weights to start from, that changed under the same name.

        Args:
            content: digests by what they are of.

        Raises:
            ConfigError: one of them is another than when the run was begun.
        """
        recorded = read_job(self.path).get("content") or {}
        other = sorted(name for name in content.keys() & recorded.keys() if content[name] != recorded[name])
        if other and self.occupied and not self.from_scratch:
            raise ConfigError(
                f"{self.path}: {', '.join(other)} changed since this run was begun: restore what it was, or set "
                "another paths.output_dir"
            )

    def accept(self, content: Mapping[str, str], step: int | None) -> str:
        """Make the folder this command's: its configuration, its digest, and what it changed.

        Args:
            content: see :meth:`check_content`.
            step: at which the run is resumed; None: at its beginning.

        Returns:
            The run's id: a new one for a run that begins, the one that it began with for one that is resumed.
        """
        if self.from_scratch and (old := self._saved()):
            log.info("%-9s %d checkpoints of the run that was here are removed", "scratch", len(old))
            for path in old:
                remove(path)
        if step is None:
            self._remove_logs()
        job = read_job(self.path)
        resumed = [] if step is None else list(job.get("resumed") or [])
        if step is not None and self.changed:
            log.info("%-9s %s", "changed", listed(self.changed))
            resumed.append({"step": step, "changed": [str(difference) for difference in self.changed]})
        entries = job.get("pending") or {"digest": digest(self.cfg), "overrides": job.get("overrides")}
        run_id = (job.get("id") if step is not None else None) or uuid.uuid4().hex[:12]
        note(
            self.path,
            command="train",
            id=run_id,
            content=dict(content),
            resumed=resumed or None,
            pending=None,
            **entries,
        )
        write_config(self.cfg, self.path)
        return str(run_id)

    def _remove_logs(self) -> None:
        """Remove what a run that begins would not write again: logs of later steps of the one that was here.

        Rollouts stay unless the run is asked for from scratch: those of this run that a kill left are read.
        """
        for name in _LOGS if self.from_scratch else _LOGS[:-1]:
            for path in self.path.glob(name):
                remove(path)


def offer(folder: RunFolder, overrides: list[str]) -> None:
    """Note what a command would make of a folder, until :meth:`RunFolder.accept`."""
    note(folder.path, pending={"digest": digest(folder.cfg), "overrides": overrides, "method": method_name()})


def untouched(folder: Path) -> bool:
    """Check whether a command ended before it was accepted by a folder that holds a run: that run's result stands."""
    return "pending" in read_job(folder) and occupied(folder)


def check_command(folder: Path, command: str) -> None:
    """Refuse the folder of the other command: its configuration would be replaced.

    Raises:
        ConfigError: the folder is that of a run where an evaluation would be written, or the other way round.
    """
    command_there = command_of(folder)
    if command_there not in (None, command):
        noun = "a training run" if command_there == "train" else "an evaluation"
        raise ConfigError(f"paths.output_dir={folder} holds {noun}: choose another folder for rlhf {command}")


def command_of(folder: Path) -> str | None:
    """``train`` or ``evaluate``; None of a folder without a configuration."""
    if not (folder / CONFIG).is_file():
        return None
    if (noted := read_job(folder).get("command")) is not None:
        return str(noted)
    cfg = read_data(folder / CONFIG)
    return "evaluate" if "run" in cfg else "train"


def start_of(cfg: DictConfig, folder: str | Path | None) -> Path | None:
    """The checkpoint whose weights a run starts from: a path in ``ckpt_path`` that is not in its own folder."""
    if cfg.ckpt_path in _WORDS:
        return None
    path = Path(cfg.ckpt_path).expanduser().absolute()
    inside = folder is not None and path.resolve().is_relative_to(Path(folder).expanduser().resolve())
    return None if inside else path


def checkpoints(folder: Path) -> list[Path]:
    """Outputs that a run has saved in its folder."""
    return sorted((folder / "checkpoints").glob("*.ckpt")) + sorted((folder / "checkpoints").glob("*.ckpt.old"))


def occupied(folder: Path) -> bool:
    """Check whether a run left weights or a result in its folder."""
    if checkpoints(folder):
        return True
    result = Result.read(folder)
    if result is None or result.status != "done" or command_of(folder) != "train":
        return False
    return not OmegaConf.select(read_data(folder / CONFIG), "trainer.fast_dev_run")


def write_config(cfg: DictConfig, folder: Path) -> None:
    """Write the resolved configuration, whole or not at all."""
    _write(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))


def write_record(folder: Path) -> None:
    """Keep Hydra's own record of a job, as ``.hydra``: choices, overrides and the configuration before resolving."""
    context = HydraConfig.instance().cfg
    assert context is not None
    record = folder / ".hydra"
    record.mkdir(parents=True, exist_ok=True)
    cfg: Any = cast("Any", context).copy()
    with open_dict(cfg):
        hydra_settings = cfg.pop("hydra")
    files = {
        "hydra": OmegaConf.create({"hydra": hydra_settings}),
        "overrides": hydra_settings.overrides.task,
        "config": cfg,
    }
    for name, node in files.items():
        _write(record / f"{name}.yaml", OmegaConf.to_yaml(node))


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text))
