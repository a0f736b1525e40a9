"""Common parts of commands of several jobs: options sorted by stage, and one stage run as an ordinary command."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.launch import Arguments, split
from rlhf_lightning.cli.launch import main as launch
from rlhf_lightning.cli.overrides import quoted, readable
from rlhf_lightning.cli.trust import commanded, may_be_given


@dataclass(frozen=True)
class Command:
    """A command line, sorted by whom its options are for."""

    flags: Arguments
    of_command: list[str]  #: of the command itself
    of_stages: list[str]  #: of every stage, or ``<stage>.<option>`` of one

    @classmethod
    def of(cls, name: str, arguments: Sequence[str], keys: Collection[str], multirun: str | None = None) -> Command:
        """Sort arguments.

        Args:
            name: of the command.
            arguments: flags and overrides in any order.
            keys: first parts of the keys that are the command's own; of ``paths`` only ``output_dir`` is.
            multirun: why the command has no ``-m``; None: it has.

        Raises:
            ConfigError: a flag that the command does not have.
        """
        flags = split(arguments)
        allowed = {"--config-dir", "-cd", *flags.config_dirs, *(() if multirun else ("-m", "--multirun"))}
        if other := [flag for flag in flags.flags if flag not in allowed]:
            reason = f": {multirun}" if multirun and other[0] in ("-m", "--multirun") else ""
            raise ConfigError(f"rlhf {name} has no flag {other[0]}{reason}")
        of_command = [option for option in flags.overrides if _root(option) in keys]
        folders = [option for option in of_command if option.startswith("paths.") and "output_dir" not in option]
        return cls(
            flags, of_command, [option for option in flags.overrides if option not in of_command or option in folders]
        )

    @property
    def config_flags(self) -> list[str]:
        """The flags that a stage's command line needs as well."""
        return [part for folder in self.flags.config_dirs for part in ("--config-dir", folder)]


def by_stage(options: Sequence[str], stages: Collection[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Options of a command line for every stage, and those of each, as its own job knows them.

    Args:
        options: ``key=value``; one of a single stage begins with its name and a dot.
        stages: their names.
    """
    everyone = [option for option in options if _stage_of(option) not in stages]
    named = {stage: [_inside(option) for option in options if _stage_of(option) == stage] for stage in stages}
    return everyone, named


def key_of(option: str) -> str:
    """The key of an option, without the signs in front of it."""
    return option.partition("=")[0].lstrip("+~")


def _root(option: str) -> str:
    return key_of(option).split(".")[0]


def _stage_of(option: str) -> str:
    key, dot, _ = key_of(option).partition(".")
    return key if dot else ""


def _inside(option: str) -> str:
    """An option of one stage as that stage's job knows it."""
    signs = option[: len(option) - len(option.lstrip("+~"))]
    return signs + option[len(signs) :].partition(".")[2]


def check_trusted(lists: Mapping[str, Sequence[str]]) -> None:
    """Refuse options of a yaml that count on the command line alone: a stage's job would take them for the user's.

    Args:
        lists: options by where they stand, without references to stages.

    Raises:
        ConfigError: there is one; the message names it and where it stands.
    """
    for where, options in lists.items():
        for option in options:
            keys = commanded(readable([option]))
            if wrong := sorted(key for key in keys if not may_be_given(key) or key.split(".")[0] in ("hydra", "paths")):
                raise ConfigError(f"{where}: {wrong[0]} stands in a yaml, and counts only on the command line")


def folder_option(folder: Path) -> str:
    """The option that gives a job its folder."""
    return f"paths.output_dir={quoted(folder.absolute())}"


def run_job_of_stage(command: str, options: Sequence[str], folder: Path, config_flags: Sequence[str]) -> int:
    """Run ``rlhf train`` or ``rlhf evaluate`` in this process.

    Returns:
        Its exit code, also where a signal ended it: the job has saved how far it came.
    """
    try:
        return launch([command, *config_flags, *options, folder_option(folder)])
    except SystemExit as stop:
        return int(stop.code or 0)
