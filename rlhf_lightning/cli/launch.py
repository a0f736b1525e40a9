"""``rlhf train`` and ``rlhf evaluate``: from the command line through Hydra to one job or a sweep of them."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.markup import escape

from rlhf_lightning.cli.compose import compose_with_overrides, parse, register, sweep_points, to_config_error
from rlhf_lightning.cli.console import ERR, report, say
from rlhf_lightning.cli.errors import ConfigError, describe, suggestion
from rlhf_lightning.cli.failures import failure_of, keep
from rlhf_lightning.cli.folder import RunFolder, check_command, checkpoints, held, occupied, offer, write_record
from rlhf_lightning.cli.hydra_targets import check_hydra
from rlhf_lightning.cli.overrides import quoted, readable, several_values
from rlhf_lightning.cli.processes import (
    is_first_process,
    join_job,
    launched,
    rank,
    refuse_other_launchers,
    several_commands,
)
from rlhf_lightning.cli.renamed import with_new_names
from rlhf_lightning.cli.results import Result, duration, short
from rlhf_lightning.cli.schema import check_config
from rlhf_lightning.cli.show import show_changes
from rlhf_lightning.cli.sweep import SWEEP, SweepSummary, prepare_sweep
from rlhf_lightning.cli.worker import die_with_parent, run_job
from rlhf_lightning.conf_dir import conf_dir

#: Flags of Hydra with a value of their own.
_VALUED = frozenset({"--config-dir", "-cd", "--package", "-p", "--cfg", "-c"})
_REPLACING = ("--config-name", "-cn", "--config-path", "-cp")
_PLAIN = ("--multirun", "-m", "--run", "-r", "--resolve", "--hydra-help", "--shell-completion", "-sc")
_OFFERED = ("--multirun", "--config-dir", "--cfg", "--resolve", "--full-error", "--help")
#: With one of these Hydra prints something and no job runs.
_PRINTING = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc")


@dataclass
class Arguments:
    """A command line, flags apart from overrides: Hydra itself wants all flags on one side."""

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config_dirs: list[str] = field(default_factory=list)

    @property
    def multirun(self) -> bool:
        """True if the user asked for a sweep."""
        return bool({"-m", "--multirun"} & set(self.flags))

    @property
    def folders(self) -> list[str]:
        """Folders with yaml files beside ours."""
        return [*self.config_dirs, *filter(None, os.environ.get("RLHF_CONF", "").split(os.pathsep))]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the composition; the composed options are checked later."""
        return {"config_dirs": self.config_dirs, "check": False}

    @property
    def prints(self) -> bool:
        """True if Hydra only prints something."""
        return any(flag.split("=", 1)[0] in _PRINTING for flag in self.flags)


def main(arguments: Sequence[str], ending: Callable[[Path], None] = show_changes) -> int:
    """Run ``rlhf train ...`` or ``rlhf evaluate ...``.

    Args:
        arguments: the command, then flags and overrides in any order.
        ending: called with the folder of a single job that was trained to its end.
    """
    command, given = arguments[0], split(arguments[1:])
    register()
    SweepSummary.folder = SweepSummary.trained = None
    overrides = printed(command, given) if given.prints else check(command, given)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and exiting; we print
    named = [] if given.prints else [f"hydra.job.name={command}"]
    if SweepSummary.resumed_folder is not None:
        named.append(f"hydra.sweep.dir={quoted(SweepSummary.resumed_folder)}")
    sys.argv = [f"rlhf {command}", *given.flags, *named, *overrides]
    run = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    task: Callable[[DictConfig], Any] = _train if command == "train" else _evaluate
    try:
        run(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise to_config_error(error) from error
    except ValueError as error:  # of a sweeper that asks for the best of no values
        if (reason := SweepSummary.why_no_value()) is None:
            raise
        raise ConfigError(reason) from error
    if SweepSummary.trained is not None and is_first_process():
        ending(SweepSummary.trained)
    return SweepSummary.exit_code


def split(arguments: Sequence[str]) -> Arguments:
    """Sort a command line into flags and overrides.

    Raises:
        ConfigError: an unknown flag, or a flag without its value.
    """
    result, rest = Arguments(), list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            result.overrides += readable([argument])
            continue
        if name in _REPLACING:
            raise ConfigError(
                f"{name} replaces the file that a command is: choose an experiment in a --config-dir instead"
            )
        if name in _VALUED and not equals:
            if not rest:
                raise ConfigError(f"{argument} needs a value")
            value = rest.pop(0)
        elif name not in (*_VALUED, *_PLAIN, "--info", "-i"):
            raise ConfigError(f"there is no flag {name}.{suggestion(name, _OFFERED)}")
        if name in ("--config-dir", "-cd"):
            result.config_dirs.append(value)
        result.flags += [name, value] if name in _VALUED else [argument]
    return result


def check(command: str, given: Arguments) -> list[str]:
    """Compose and check enough of the jobs to meet every option once, before Hydra starts the first.

    Returns:
        The overrides, with ``++`` where Hydra wants it.

    Raises:
        ConfigError: as :func:`rlhf_lightning.cli.compose.compose`.
    """
    added: set[str] = set()
    sweeping, params, first = given.multirun, [], None
    for folder in given.config_dirs:
        if not Path(folder).expanduser().is_dir():
            raise ConfigError(f"--config-dir {folder}: there is no such folder")
    several = [override for override in parse(given.overrides) if override.is_sweep_override()]
    for number, point in enumerate(sweep_points(given.overrides, given.folders)):
        cfg, accepted = compose_with_overrides(command, point, **given.options, with_hydra=number == 0)
        _checked(command, cfg, point)
        if number == 0:
            first = cfg
            sweeping = sweeping or cfg.hydra.mode == RunMode.MULTIRUN
            params = list(OmegaConf.select(cfg, "hydra.sweeper.params") or [])
        added |= {new for new, old in zip(accepted, point, strict=True) if new != old}
    if several and not sweeping:
        raise ConfigError(several_values(several[0], "add -m to run a job for each, or "))
    if sweeping:
        assert first is not None  # a sweep has a first point
        check_params(command, given)
        os.environ[SWEEP] = ",".join([*(str(override.key_or_group) for override in several), *params]) or "seed"
        prepare_sweep(first, command, given.overrides)
    return per_job(_with_additions(given, added), {str(override.key_or_group) for override in several})


def _with_additions(given: Arguments, added: Iterable[str]) -> list[str]:
    """The overrides of a command line, with ``++`` at those that are among the additions to the yaml files."""
    keys = {override.removeprefix("++").split("=", 1)[0] for override in added}
    return [f"++{override}" if override.split("=", 1)[0] in keys else override for override in given.overrides]


def check_params(command: str, given: Arguments) -> None:
    """Check Hydra's part of every job that the parameters of a sweeper name, where files of others take part.

    They are no overrides of the command line, and Hydra sets up a job's logging before the job can be checked.
    """
    if not given.folders:
        return
    plain = [override for override in parse(given.overrides) if not override.is_sweep_override()]
    lines = [str(override.input_line) for override in plain]
    base, _ = compose_with_overrides(command, lines, **given.options, with_hydra=True)
    node = OmegaConf.select(base, "hydra.sweeper.params") or OmegaConf.create({})
    params = OmegaConf.to_container(node, resolve=True)
    assert isinstance(params, dict)
    for point in sweep_points([f"{key!s}={value}" for key, value in params.items()], given.folders):
        compose_with_overrides(command, [*point, *lines], **given.options)


def printed(command: str, given: Arguments) -> list[str]:
    """The overrides of a command that only prints, after a check of what Hydra sets up to print it."""
    flags = {flag.partition("=")[0] for flag in given.flags}
    if not flags & {"--info", "-i", "--cfg", "-c"}:
        return given.overrides
    point = next(iter(sweep_points(given.overrides, given.folders)))
    _, accepted = compose_with_overrides(command, point, **given.options)
    return _with_additions(given, {new for new, old in zip(accepted, point, strict=True) if new != old})


def per_job(overrides: Sequence[str], swept: Collection[str]) -> list[str]:
    """Keep options of a group that is swept over for the jobs, as sweeps over one value.

    Hydra composes the configuration of the sweep itself with the default of such a group (``method=dpo``), where an
    option of the values that were chosen (``method.rollout.group_size``) may not exist.

    Args:
        overrides: as the user gave them.
        swept: groups and keys with several values.
    """
    out = []
    for override, read in zip(overrides, parse(overrides), strict=True):
        key = str(read.key_or_group)
        inside = "." in key and key.partition(".")[0] in swept and key not in swept
        name, _, value = override.partition("=")
        out.append(f"{name}=choice({value})" if inside and not read.is_sweep_override() and value else override)
    return out


def _train(cfg: DictConfig) -> float | None:
    return _job("train", cfg)


def _evaluate(cfg: DictConfig) -> float | None:
    return _job("evaluate", cfg)


def _job(command: str, cfg: DictConfig) -> float | None:
    """One job of Hydra's. In a sweep a failing job is recorded, and the others continue.

    Returns:
        The optimised metric; None for a job that failed or whose metric is not finite, which sweepers take for a
        failed trial.
    """
    register()
    if multiprocessing.current_process().name.startswith("Loky"):  # a process of the joblib launcher
        _watch_once()
    context = HydraConfig.get()
    sweeping = context.mode == RunMode.MULTIRUN
    cfg.paths.output_dir = str(Path(context.runtime.output_dir).absolute())
    overrides = list(context.overrides.task)
    if sweeping:
        varying = os.environ.get(SWEEP, "").split(",")
        shown = [override for override in overrides if override.lstrip("+").split("=", 1)[0] in varying]
        say(f"[bold]job {context.job.num}[/]  {escape(' '.join(shown))}")

    try:
        refuse_other_launchers()
        check_hydra(_with_hydra(cfg))
        cfg = _checked(command, cfg, overrides)
        join_job(cfg.get("strategy"))
        _refuse_without_folder(cfg, overrides)
    except Exception as error:  # a value that only the sweeper knew: the other jobs still run
        folder = Path(cfg.paths.output_dir)
        SweepSummary.exit_code = _report_failure(error, folder, overrides)
        if is_first_process() and not occupied(folder):
            Result("failed", error=describe(error), exit_code=SweepSummary.exit_code, overrides=overrides).write(folder)
        return None
    if sweeping and command == "train" and not launched():
        result = _job_of_sweep(cfg, overrides, Path(context.sweep.dir).absolute())
    else:
        try:
            result = _job_alone(command, cfg, overrides)
        except ConfigError as error:  # the folder is not this job's to write to
            SweepSummary.exit_code = _report_failure(error, Path(cfg.paths.output_dir), overrides)
            return None
    if not sweeping:
        SweepSummary.exit_code = result.exit_code
    good = result.status == "done" and result.value is not None and math.isfinite(result.value)
    return result.value if good else None


def _report_failure(error: Exception, folder: Path, overrides: list[str]) -> int:
    """Report what a command is refused for; other processes than the first leave it to the first, which may not see it.

    Returns:
        The exit code.
    """
    if is_first_process():
        return report(error)
    failure = failure_of(error, rank())
    if _names_folder(overrides):
        keep(failure, error, folder)
    return failure.code


def _job_alone(command: str, cfg: DictConfig, overrides: list[str]) -> Result:
    """A job in the folder that it was given, unless that is another job's or another process's."""
    path = Path(cfg.paths.output_dir)
    with held(path):
        check_command(path, command)
        finished = None
        if command == "train":
            folder = RunFolder(cfg)
            folder.check()
            finished = folder.finished
            if is_first_process():
                offer(folder, overrides)
        if is_first_process() and finished is None:
            write_record(path)
        result = _run(command, cfg, overrides)
        if command == "train" and finished is None and result.status == "done":
            SweepSummary.trained = path
        return result


def _job_of_sweep(cfg: DictConfig, overrides: list[str], sweep: Path) -> Result:
    """Run a job of a sweep, unless one with the same configuration is finished; a half-done one is resumed."""
    from rlhf_lightning.cli import jobs

    numbered = Path(cfg.paths.output_dir)
    job = jobs.find(cfg, numbered, sweep)
    with jobs.claimed(job, cfg, overrides) as claim:
        jobs.link(numbered, claim.folder)
        if claim.result is not None:
            where = "" if claim.folder == numbered else f" in {short(claim.folder)}"
            saved = duration(claim.result.seconds)
            say(f"       [dim]was done before{where}, {saved} saved (rerun=true runs it from scratch)[/]")
            return claim.result
        if claim.folder != numbered:
            say(f"       [dim]resumes in {short(claim.folder)}[/]")
        cfg.paths.output_dir = str(claim.folder)
        write_record(claim.folder)
        result = _run("train", cfg, overrides)
        jobs.remember(cfg, sweep, claim.folder)
    return result


@functools.cache
def _watch_once() -> None:
    die_with_parent()


def _run(command: str, cfg: DictConfig, overrides: list[str]) -> Result:
    """Run a job here and now; one that a signal stopped ends the whole process."""
    result = run_job(command, cfg, overrides)
    if result.status == "stopped":
        if is_first_process():
            again = "" if os.environ.get(SWEEP) else f" with paths.output_dir={cfg.paths.output_dir}"
            ERR.print(_stopped(command, result, Path(cfg.paths.output_dir), f"the same command{again}"), markup=False)
        sys.exit(result.exit_code)
    if os.environ.get(SWEEP):
        say(f"       [dim]{result.status} in {duration(result.seconds)}[/]")
    return result


def _stopped(command: str, result: Result, folder: Path, same: str) -> str:
    """Say where a job was stopped, and what the same command will do."""
    if command != "train" or not (result.saved or checkpoints(folder)):
        return f"stopped before anything was saved; {same} starts from the beginning"
    if result.saved is None:
        return f"stopped before training; {same} resumes"
    if result.saved == result.steps:
        return f"stopped and saved after step {result.steps}; {same} resumes there"
    return f"stopped after step {result.steps}; {same} resumes from step {result.saved}"


def _checked(command: str, cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration that is run: with what ``run=`` decides, without Hydra's own part, checked."""
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.pop("hydra", None)
    with_new_names(cfg, warn=False)  # what the command line has was told when it was composed
    if command == "evaluate":
        from rlhf_lightning.cli.runs import from_run  # reads checkpoints: it imports torch

        cfg = from_run(cfg, overrides)
    check_config(cfg, command, overrides)
    return cfg


def _with_hydra(cfg: DictConfig) -> DictConfig:
    """The configuration of a job together with Hydra's own part of it, as both were composed."""
    whole = cfg.copy()
    with open_dict(whole):
        whole.hydra = HydraConfig.get()
    return whole


def _refuse_without_folder(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Where every process composes for itself, the clock would give each a folder of its own."""
    if several_commands(cfg.get("strategy")) and not _names_folder(overrides):
        raise ConfigError(
            "under torchrun or srun, and on several machines, set paths.output_dir: all processes need the same folder"
        )


def _names_folder(overrides: Sequence[str]) -> bool:
    return any(override.startswith("paths.output_dir=") for override in overrides)
