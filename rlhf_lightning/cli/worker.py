"""One job, in this process or in one of its own.

A job with several processes never runs inside Hydra: Lightning starts its other processes by repeating the command
line, which in a sweep would start the whole sweep again. The job gets a fresh process with the resolved configuration
in a file; what Lightning repeats is then this module with that file, whichever launcher is at work.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.console import report, setup_logging
from rlhf_lightning.cli.errors import describe, exit_code
from rlhf_lightning.cli.folder import held_by_command, untouched
from rlhf_lightning.cli.heap import release
from rlhf_lightning.cli.results import FILE, Result
from rlhf_lightning.signals import SIGTERM_EXIT, run_with_sigterm_exit

log = logging.getLogger(__name__)

#: Set while a sweep runs, to the keys that vary; the processes of its jobs inherit it.
SWEEP = "RLHF_SWEEP"
#: Process id of the command that started a worker.
PARENT = "RLHF_PARENT"
#: Seconds between two looks at whether the parent lives.
_LOOK_EVERY = 1.0
#: What Lightning leaves in the environment for the processes that it starts; a new job must not inherit it.
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


def run_job(command: str, cfg: DictConfig, overrides: list[str]) -> Result:
    """Run one job; whatever happens becomes a result, and ``result.json`` in its folder.

    Args:
        command: ``train`` or ``evaluate``.
        cfg: checked, with ``paths.output_dir`` set.
        overrides: what this job was asked for, for the record.
    """
    folder = Path(cfg.paths.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    result = run_here(command, cfg) if launched() or not several_processes(cfg) else _run_apart(command, cfg, folder)
    release()
    result.overrides = overrides
    if is_first_process() and not untouched(folder):
        result.write(folder)
    return result


def run_here(command: str, cfg: DictConfig) -> Result:
    """Run a job in this process."""
    folder, started = Path(cfg.paths.output_dir), time.perf_counter()
    import lightning.pytorch  # noqa: F401  sets the level of its loggers; ours is to come after

    setup_logging(folder, command, brief=bool(os.environ.get(SWEEP)))
    if command == "evaluate" and is_first_process():  # a run goes on from what it left; an evaluation is always whole
        (folder / FILE).unlink(missing_ok=True)
    try:
        _quieten_transformers()
        run_with_sigterm_exit(lambda: _task(command)(cfg))
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit code 1.
        code = SIGTERM_EXIT if stop.code in (0, SIGTERM_EXIT) else 128 + signal.SIGINT
        return _ended("stopped", code, started, "stopped by a signal", folder)
    except KeyboardInterrupt:
        return _ended("stopped", 128 + signal.SIGINT, started, "interrupted", folder)
    except Exception as error:  # a job of a sweep must not take the others with it
        return _failed(error, folder, started)
    return Result.read(folder) or _ended("done", 0, started, None)


def several_processes(cfg: DictConfig) -> bool:
    """Whether a job runs in more than one process, or asks for a strategy that sets up process groups."""
    strategy = cfg.get("strategy") or {}
    devices, nodes = strategy.get("devices", 1), strategy.get("num_nodes", 1)
    one_device = devices in (1, "1") or (OmegaConf.is_list(devices) and len(devices) == 1)
    return not (one_device and nodes == 1 and strategy.get("strategy", "auto") == "auto")


def launched() -> bool:
    """Whether torchrun or Slurm has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def is_first_process() -> bool:
    """Whether this process reports for its job."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _task(command: str) -> Callable[[DictConfig], Any]:
    if command == "evaluate":
        from rlhf_lightning.cli.evaluate import evaluate

        return evaluate
    from rlhf_lightning.cli.train import train

    return train


def _quieten_transformers() -> None:
    """No bars for every file that is read or written: they tear the progress line apart."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]


def _run_apart(command: str, cfg: DictConfig, folder: Path) -> Result:
    """Run a job in a fresh process and wait for it; SIGTERM and Ctrl-C are passed on."""
    started = time.perf_counter()
    file = folder / ".job.yaml"
    OmegaConf.save(cfg, file, resolve=True)
    environment = {key: value for key, value in os.environ.items() if key not in DISTRIBUTED}
    environment[PARENT] = str(os.getpid())
    arguments = [sys.executable, "-m", "rlhf_lightning.cli.worker", command, str(file)]
    process = subprocess.Popen(arguments, env=environment)
    with _passed_on(process):
        code = process.wait()
    file.unlink(missing_ok=True)
    code = code if code >= 0 else 128 - code
    status = "done" if code == 0 else "stopped" if code in (SIGTERM_EXIT, 128 + signal.SIGINT) else "failed"
    result = Result.read(folder)
    if result is None or (result.status == "done") != (code == 0):  # killed before it could say anything itself
        return _ended(status, code, started, f"the job's process ended with code {code}", folder)
    return result


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Give the signals that ask this process to stop to another one."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    # The terminal sends Ctrl-C to the whole group: the worker has it already, this process only has to wait.
    handlers = {signal.SIGTERM: pass_on, signal.SIGINT: lambda signum, frame: None}
    try:
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # not the main thread: whoever is can end the process itself
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(status: Any, code: int, started: float, error: str | None, folder: Path | None = None) -> Result:
    """How a job ended, with how far it came where it left a note of that in its folder."""
    result = (Result.read(folder) if folder is not None else None) or Result(status)
    seconds = round(time.perf_counter() - started, 2)
    return replace(result, status=status, seconds=seconds, error=error, exit_code=code, value=None)


def _failed(error: Exception, folder: Path, started: float) -> Result:
    """Tell the user, and keep the traceback in the run's folder."""
    file = folder / "error.log"
    file.write_text("".join(traceback.format_exception(error)))
    code = report(error, file) if is_first_process() else exit_code(error)
    return _ended("failed", code, started, describe(error), folder)


def die_with_parent(parent: int | None = None) -> None:
    """End this process within a second of its parent's death, whatever killed it and whatever is under way here.

    A worker whose command was killed with SIGKILL would train on unseen and write beside the run that takes its place.
    A thread looks: Linux's own signal for this follows the parent's *thread*, and launchers start workers from threads
    that end before they do.

    Args:
        parent: the process that started this one, if it may have died already; None: the one that is there now.
    """
    expected = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(_LOOK_EVERY)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die_with_parent", daemon=True).start()


def main(arguments: list[str]) -> int:
    """``python -m rlhf_lightning.cli.worker <command> <file of the configuration>``."""
    # Lightning starts the other processes of the job with the environment of this one.
    parent = os.environ.pop(PARENT, None)
    die_with_parent(int(parent) if parent is not None else None)
    from rlhf_lightning.cli.compose import register

    register()
    command, file = arguments
    cfg = OmegaConf.load(file)
    assert isinstance(cfg, DictConfig)
    folder = Path(cfg.paths.output_dir)
    held_by_command(folder)
    result = run_here(command, cfg)
    if is_first_process() and not untouched(folder):
        result.write(folder)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
