"""``rlhf chain``: the stages of a recipe, each an ordinary job on what earlier stages left.

A stage lies in ``<chain>/<stage>/<digest>``, under the digest of its configuration, of the files that it reads and, by
their folders, of the stages that it takes from. So the same command finds what is finished and resumes what is not; a
stage whose options changed is another folder, as is every stage behind it; and the chains of a sweep share every stage
that they have in common.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning import clock
from rlhf_lightning.cli.chain_record import Finished, write_chain
from rlhf_lightning.cli.chain_run import Job, Planner
from rlhf_lightning.cli.chain_stages import COMMANDS, DRAWING, OF_CHAIN, Stage, ordered, without_references
from rlhf_lightning.cli.compose import compose, parse
from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.folder import held
from rlhf_lightning.cli.overrides import several_values
from rlhf_lightning.cli.results import duration, short
from rlhf_lightning.cli.stages import Command, by_stage, check_trusted, key_of
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.rounds.game import latest

#: The size that a chain has without one.
PUBLISHED = "published"


def main(arguments: Sequence[str]) -> int:
    """Run the chain of a command line, or with ``-m`` one for each combination of values.

    Returns:
        0; else the exit code of the stage that ended it.
    """
    command = Command.of("chain", arguments, OF_CHAIN)
    cfg = compose("chain", command.of_command, config_dirs=command.flags.config_dirs)
    folder = folder_of(cfg, command.of_command)
    chains = [(point, chain_of(cfg, point)) for point in points(command)]
    with held(folder):
        os.environ[clock.VARIABLE] = clock.begin(folder).isoformat()  # one date for all stages
        planner = Planner(folder, command)
        for _, stages in chains:
            planner.check(stages)
        finished: list[Finished] = []
        for number, (point, stages) in enumerate(chains):
            if len(chains) > 1:
                say(f"[bold]chain {number}[/]  {' '.join(swept(point, command))}")
            finished.append(Finished(swept(point, command), []))
            if code := _run(planner, stages, finished, cfg):
                return code
    return _reported(folder)


def _reported(folder: Path) -> int:
    """Write the page of a chain whose stages have all run; stages without numbers make none."""
    from rlhf_lightning.cli.report import main as report
    from rlhf_lightning.report import ReportError

    try:
        return report([str(folder)])
    except ReportError as error:
        say(f"the chain ran, and there is no report: {str(error).splitlines()[0]}")
        return 0


def _run(planner: Planner, stages: Sequence[Stage], finished: list[Finished], cfg: DictConfig) -> int:
    """Run the stages of one chain that are not done yet; the exit code of the one that ended it, else 0."""
    for job in planner.jobs(stages):
        again = bool(job.cfg.get("rerun")) and job.folder not in planner.ran
        if (result := job.result) is not None and not again:
            saved = duration(result.seconds)
            say(f"stage {job.stage.name} [dim]was done before in {short(job.folder)}, {saved} saved[/]")
        else:
            say(f"[bold]stage {job.stage.name}[/]  {short(job.folder)}")
            if (reason := planner.why(job)) is not None:
                say(f"       [dim]{reason}[/]")
            planner.ran.add(job.folder)
            if code := _timed(planner, job):
                say(f"the chain ended in stage {job.stage.name} (exit code {code}); the same command resumes there")
                return code
        finished[-1].stages.append(job.record(planner.folder))
        write_chain(planner.folder, str(cfg.size), finished)
    return 0


def _timed(planner: Planner, job: Job) -> int:
    started = time.perf_counter()
    try:
        planner.check_present(job)
        outcome = job.run()
    except ConfigError as error:
        raise ConfigError(f"stage {job.stage.name}: {error}") from error
    job.keep(time.perf_counter() - started, outcome)
    return outcome.code


def chain_of(cfg: DictConfig, options: Sequence[str]) -> list[Stage]:
    """The stages that a configuration and further options describe, each behind those that it takes from.

    Args:
        cfg: of the command.
        options: of the command line: for every stage that trains, or for one where they begin with its name.

    Raises:
        ConfigError: a stage or a size is described wrongly, or names what only the command line may.
    """
    node: Any = OmegaConf.to_container(cfg.chain, resolve=True)
    if not node["stages"]:
        raise ConfigError(f"chain.stages is empty: choose a chain with experiment=..., one of {', '.join(names())}")
    size = _size(node["sizes"] or {}, str(cfg.size))
    described = {str(name): _lines(lines) for name, lines in node["stages"].items()}
    if unknown := sorted(set(size["stages"]) - set(described)):
        where = f"chain.sizes.{cfg.size}.stages.{unknown[0]}"
        raise ConfigError(f"{where}: the chain has no such stage.{suggestion(unknown[0], described)}")
    everyone, named = by_stage(options, described)
    stages = []
    for name, lines in described.items():
        bare = Stage.of(name, lines)
        first, second = (_shared(one["shared"], bare.command) for one in (node, size))
        of_yaml = [*first, *bare.options, *second, *_lines(size["stages"].get(name))]
        check_trusted({f"chain.stages.{name}": [without_references(option) for option in of_yaml]})
        given = [*(option for option in everyone if _is_for(option, bare.command)), *named[name]]
        stages.append(Stage.of(name, [bare.command, *latest([*of_yaml, *given])]))
    return ordered(stages)


def _size(sizes: dict[str, Any], name: str) -> dict[str, Any]:
    """Options of a size, ``shared`` and ``stages``; empty for the published one.

    Raises:
        ConfigError: the chain has no such size, or it says something else.
    """
    if name != PUBLISHED and name not in sizes:
        offered = [PUBLISHED, *sizes]
        raise ConfigError(f"size={name}: the chain has no such size.{suggestion(name, offered, prefix='size=')}")
    changes = sizes.get(name) or {}
    if other := sorted(set(changes) - {"shared", "stages"}):
        raise ConfigError(f"chain.sizes.{name}.{other[0]}: a size has shared and stages")
    return {"shared": changes.get("shared"), "stages": changes.get("stages") or {}}


def _shared(node: Any, command: str) -> list[str]:
    """Options of every stage of a command: a list is for those that train, a mapping has the others by command.

    Raises:
        ConfigError: no stage can be of such a command.
    """
    by_command = node if isinstance(node, dict) else {COMMANDS[0]: node}
    if unknown := sorted(set(by_command) - set(COMMANDS)):
        raise ConfigError(
            f"chain.shared.{unknown[0]}: no stage is of such a command.{suggestion(unknown[0], COMMANDS)}"
        )
    return _lines(by_command.get(command))


def _is_for(option: str, command: str) -> bool:
    """Check whether an option that names no stage applies to stages of a command; a seed applies to all draws."""
    return command == "train" or (command in DRAWING and key_of(option) == "seed")


def _lines(node: Any) -> list[str]:
    return [str(line) for line in node or ()]


def names() -> list[str]:
    """Experiments that are chains."""
    files = sorted((conf_dir() / "experiment").glob("*.yaml"))
    return [file.stem for file in files if "\nchain:" in file.read_text(encoding="utf-8")]


def folder_of(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """The folder of a chain: as asked, else ``runs/chain/<experiment>/<size>``, which the same command always has."""
    if cfg.paths.output_dir is not None:
        return Path(cfg.paths.output_dir).expanduser().absolute()
    chosen = [str(one.value()) for one in parse(overrides) if str(one.key_or_group) == "experiment"]
    return (Path(cfg.paths.runs) / "chain" / (chosen[-1] if chosen else "unnamed") / str(cfg.size)).absolute()


def points(command: Command) -> Iterator[list[str]]:
    """Options of the chains of a command line: of each combination of the values that ``-m`` is given.

    Raises:
        ConfigError: several values without ``-m``, or values that only a sweeper knows.
    """
    choices = []
    for override in parse(command.of_stages):
        line = str(override.input_line)
        if not override.is_sweep_override():
            choices.append([line])
        elif not command.flags.multirun:
            raise ConfigError(several_values(override, "add -m to run a chain for each, or "))
        elif not override.is_discrete_sweep():
            raise ConfigError(f"{line}: the values of a chain are a list, such as {line.partition('=')[0]}=1,2")
        else:
            prefix = line.partition("=")[0]
            choices.append([f"{prefix}={value}" for value in override.sweep_string_iterator()])
    yield from map(list, itertools.product(*choices))


def swept(point: Sequence[str], command: Command) -> list[str]:
    """Of the options of one chain of a sweep, those of which there are several values."""
    several = [override.is_sweep_override() for override in parse(command.of_stages)]
    return [option for option, varies in zip(point, several, strict=True) if varies]
