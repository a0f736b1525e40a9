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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.console import report_text, say_error, setup_logging
from rlhf_lightning.cli.cpu_defaults import flushed_denormals
from rlhf_lightning.cli.failures import (
    Failure,
    Watch,
    cause,
    failure_of,
    first_failure,
    forget,
    keep,
    traceback_of,
    traceback_text,
)
from rlhf_lightning.cli.folder import held_by_command, untouched
from rlhf_lightning.cli.heap import release
from rlhf_lightning.cli.processes import environment_of_worker, is_first_process, launched, rank, several_processes
from rlhf_lightning.cli.results import FILE, Result
from rlhf_lightning.cli.sweep import SWEEP
from rlhf_lightning.cli.targets import allow_current_folder
from rlhf_lightning.cli.trust import allowed_targets
from rlhf_lightning.signals import SIGINT_EXIT, SIGTERM_EXIT, run_with_exit_code

#: By its full name: as a process of its own this module is ``__main__``, whose logger nobody listens to.
LOGGER = "rlhf_lightning.cli.worker"
log = logging.getLogger(LOGGER)

#: Process id of the command that started a worker.
PARENT = "RLHF_PARENT"
#: Seconds between two looks at whether the parent lives.
_LOOK_EVERY = 1.0


def run_job(command: str, cfg: DictConfig, overrides: list[str]) -> Result:
    """Run one job; whatever happens becomes a result, and ``result.json`` in its folder.

    Args:
        command: ``train`` or ``evaluate``.
        cfg: checked, with ``paths.output_dir`` set.
        overrides: what this job was asked for, for the record.
    """
    folder = Path(cfg.paths.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    runs_here = launched() or not several_processes(cfg.get("strategy"))
    if is_first_process():
        forget(folder, all_of_them=not launched())
    result = run_here(command, cfg) if runs_here else _run_apart(command, cfg, folder)
    release()
    result.overrides = overrides
    result.optimized_metric = result.optimized_metric or cfg.get("optimized_metric")
    if is_first_process() and not untouched(folder):
        result.write(folder)
    return result


def run_here(command: str, cfg: DictConfig) -> Result:
    """Run a job, or this process's part of it, in this process."""
    part = _Part(command, Path(cfg.paths.output_dir), several_processes(cfg.get("strategy")))
    import lightning.pytorch  # noqa: F401  sets the level of its loggers; ours is to come after

    setup_logging(part.folder, command, brief=bool(os.environ.get(SWEEP)))
    if command == "evaluate" and is_first_process():  # a run is resumed from its files; an evaluation is always whole
        (part.folder / FILE).unlink(missing_ok=True)
    try:
        _quieten_transformers()
        with flushed_denormals(), Watch(part.folder, rank(), part.abandon) if part.several else nullcontext():
            value = run_with_exit_code(lambda: _task(command)(cfg))
    except SystemExit as stop:
        # Lightning turns a Ctrl-C that no callback took into exit code 1.
        code = SIGTERM_EXIT if stop.code in (0, SIGTERM_EXIT) else SIGINT_EXIT
        return part.stopped(code, "stopped by a signal")
    except KeyboardInterrupt:
        return part.stopped(SIGINT_EXIT, "interrupted")
    except Exception as error:  # a job of a sweep must not take the others with it
        return part.failed(error)
    result = Result.read(part.folder) or _ended("done", 0, part.started, None)
    metric = cfg.get("optimized_metric")  # of a finished run, which is left as it is, it may be another one
    return result if metric == result.optimized_metric else replace(result, optimized_metric=metric, value=value)


@dataclass
class _Part:
    """Run this process's part of a job, and handle its failure."""

    command: str
    folder: Path
    several: bool  #: there are other processes
    started: float = field(default_factory=time.perf_counter)

    def failed(self, error: Exception) -> Result:
        """Keep the error, and report the job's where this process reports for it."""
        failure = failure_of(error, rank())
        if not self.several:
            return _reported(failure, traceback_text(error), self.command, self.folder, self.started)
        keep(failure, error, self.folder)
        if rank():  # to the log of this process; the job's is written by whoever reports
            log.error("%s", failure.text)
        return self._of_job(cause(self.folder, failure) if is_first_process() and launched() else failure)

    def stopped(self, code: int, reason: str) -> Result:
        """The result of a signal, which a launcher also sends when another process has failed."""
        first = first_failure(self.folder) if self.several else None
        if first is not None and not first.consequence:
            return self._of_job(first)
        return _ended("stopped", code, self.started, reason, self.folder)

    def abandon(self, first: Failure) -> None:
        """End this process at once: it waits for one that has failed."""
        result = self._of_job(first)
        if is_first_process():
            result.write(self.folder)
        os._exit(result.exit_code)

    def _of_job(self, first: Failure) -> Result:
        if is_first_process() and launched():  # a command that started processes reports for them
            return _reported(first, traceback_of(self.folder, first), self.command, self.folder, self.started)
        return _ended("failed", first.code, self.started, first.message, self.folder)


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
    file = folder / (f".job.{rank()}.yaml" if rank() else ".job.yaml")
    OmegaConf.save(cfg, file, resolve=True)
    environment = environment_of_worker(cfg.get("strategy")) | {PARENT: str(os.getpid())}
    arguments = [sys.executable, "-m", "rlhf_lightning.cli.worker", command, str(file)]
    process = subprocess.Popen(arguments, env=environment)
    with _passed_on(process):
        code = process.wait()
    file.unlink(missing_ok=True)
    code = code if code >= 0 else 128 - code
    stopped = code in (SIGTERM_EXIT, SIGINT_EXIT)
    first = first_failure(folder) if code else None
    if first is not None and not (stopped and first.consequence):
        return _reported(first, traceback_of(folder, first), command, folder, started)
    result = Result.read(folder)
    if result is None or (result.status == "done") != (code == 0):  # killed before it could say anything itself
        status = "done" if code == 0 else "stopped" if stopped else "failed"
        reason = f"the job's process ended with code {code}" + (" (killed; out of memory?)" if code == 137 else "")
        if status == "failed":
            say_error(reason)
        return _ended(status, code, started, reason, folder)
    return result


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Give the signals that ask this process to stop to another one."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        # The terminal sends Ctrl-C to the whole group: the worker has it already, and a second one would end it.
        if signum != signal.SIGINT or not _in_foreground():
            process.send_signal(signum)

    numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, pass_on) for number in numbers}
    except ValueError:  # not the main thread: whoever is can end the process itself
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Check whether a terminal's Ctrl-C goes to the group of this process."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _ended(status: Any, code: int, started: float, error: str | None, folder: Path | None = None) -> Result:
    """Outcome of a job, with its progress if its folder has a note of it."""
    result = (Result.read(folder) if folder is not None else None) or Result(status)
    seconds = round(time.perf_counter() - started, 2)
    return replace(result, status=status, seconds=seconds, error=error, exit_code=code, value=None)


def _reported(failure: Failure, trace: str, command: str, folder: Path, started: float) -> Result:
    """Tell the user what a job failed with, in the terminal, its log and its result; the traceback is kept."""
    file = folder / "error.log"
    if is_first_process():
        file.write_text(trace, encoding="utf-8")
        with (folder / f"{command}.log").open("a", encoding="utf-8") as lines:
            lines.write(f"{datetime.now():%Y-%m-%d %H:%M:%S},000 ERROR   {LOGGER}: {failure.message}\n")
    report_text(failure.message, trace, bug=failure.bug, file=file)
    return _ended("failed", failure.code, started, failure.message, folder)


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
    allow_current_folder(allowed_targets(cfg))
    folder = Path(cfg.paths.output_dir)
    held_by_command(folder)
    result = run_here(command, cfg)
    if is_first_process() and not untouched(folder):
        result.write(folder)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
