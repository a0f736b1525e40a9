"""The stages of a chain: what each takes from others, in which order they run, and what each leaves for others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlhf_lightning.cli.errors import ConfigError, suggestion
from rlhf_lightning.cli.stages import key_of

#: Commands that a stage may be; without one it is the first.
COMMANDS = ("train", "evaluate", "generate", "optimize_prompt", "steer", "game", "export")
#: Of them, those that draw random numbers: they take the seed of the chain.
DRAWING = ("train", "evaluate", "generate", "optimize_prompt", "steer")
#: First parts of a chain's own keys, which a stage cannot be called.
OF_CHAIN = ("experiment", "chain", "size", "paths")

_REFERENCE = re.compile(r"\$\{stage:([a-z][a-z0-9_]*)(?:\.([^{}]+))?\}")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_METRICS = "metrics."
#: What a stage may leave beside its folder: where that is in the folder, and how a stage comes to leave it.
_FILES: Mapping[str, tuple[str, str]] = {
    "export": ("export/last", "callbacks=[...,export] writes one at its end"),
    "best": ("export/best", "callbacks=[...,export] with callbacks.export.monitor=<metric> writes one"),
    "checkpoint": ("checkpoints/last.ckpt", "callbacks=[...,last] writes one"),
    "groups": ("rollouts/groups", "rounds=<name> writes them"),
    "responses": ("responses.jsonl", "only a stage of generate writes them"),
    "prompt": ("search/best.txt", "only a stage of optimize_prompt writes it"),
    "vectors": ("vectors.safetensors", "only a stage of steer writes them"),
}
#: Which of them stages of other commands than ``rlhf train`` leave.
_LEFT_BY: Mapping[str, set[str]] = {
    "generate": {"responses"},
    "export": {"export"},
    "optimize_prompt": {"prompt"},
    "steer": {"vectors"},
}
#: Commands whose stages have metrics.
_MEASURED = ("train", "evaluate", "generate", "optimize_prompt")
#: What a bare ``${stage:name}`` must have left where it is the value of a key.
_NEEDED = (("run", "checkpoint"), (".run", "export"))


@dataclass(frozen=True)
class Reference:
    """``${stage:name.output}`` in an option: what an earlier stage left.

    Attributes:
        option: that it stands in.
        stage: whose output it is.
        output: ``export``, ``best``, ``checkpoint``, ``groups``, ``responses``, ``prompt``, ``vectors``,
            ``metrics.<name>``; "" is the folder.
    """

    option: str
    stage: str
    output: str

    @property
    def metric(self) -> str | None:
        """The metric that it stands for; None: a file or a folder."""
        return self.output.removeprefix(_METRICS) if self.output.startswith(_METRICS) else None

    @property
    def needed(self) -> str:
        """Output that the stage must have, a key of the table of files; "" if any stage will do."""
        if self.output:
            return "" if self.metric else self.output
        whole = self.option == f"{key_of(self.option)}=${{stage:{self.stage}}}"
        return next((file for end, file in _NEEDED if whole and _ends(key_of(self.option), end)), "")

    def needed_path(self, folder: Path) -> Path | None:
        """Path that must exist in a stage's folder; None for a metric."""
        if self.metric is not None:
            return None
        return folder / _FILES[self.needed][0] if self.needed else self.path(folder)

    def path(self, folder: Path) -> Path:
        """The file or folder that it stands for, of a stage's folder."""
        return folder / _FILES[self.output][0] if self.output else folder


def _ends(key: str, end: str) -> bool:
    return key.endswith(end) if end.startswith(".") else key == end


@dataclass(frozen=True)
class Stage:
    """One job of a chain.

    Attributes:
        name: in small letters.
        command: of ``rlhf`` that it is.
        options: of that command; values may refer to other stages.
    """

    name: str
    command: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, name: str, lines: Sequence[str]) -> Stage:
        """Read a stage as a yaml describes it, options that may begin with the name of a command.

        Raises:
            ConfigError: the name or an option cannot be one, or there is no such command.
        """
        if not _NAME.fullmatch(name) or name in OF_CHAIN:
            raise ConfigError(f"chain.stages.{name}: a stage's name is a word in small letters, not {name!r}")
        command = lines[0] if lines and re.fullmatch(r"\w+", lines[0]) else None
        if command is not None and command not in COMMANDS:
            raise ConfigError(f"chain.stages.{name}: rlhf has no command {command!r} for a stage.{_near(command)}")
        stage = cls(name, command or COMMANDS[0], tuple(lines[1:] if command else lines))
        for option in stage.options:
            if "=" not in option and not option.startswith("~"):
                raise ConfigError(f"chain.stages.{name}: {option!r} is no option, which is key=value or ~key")
            if "${stage:" in _REFERENCE.sub("", option):
                raise ConfigError(f"chain.stages.{name}: {option} refers to a stage as ${{stage:name}} cannot be read")
        return stage

    @property
    def references(self) -> list[Reference]:
        """References to other stages."""
        return [reference for option in self.options for reference in references(option)]

    def filled(self, value: Callable[[Reference], str]) -> tuple[str, ...]:
        """Its options with values in the place of references."""

        def fill(option: str) -> str:
            given = iter(references(option))
            return _REFERENCE.sub(lambda _: value(next(given)), option)

        return tuple(map(fill, self.options))


def references(option: str) -> Iterator[Reference]:
    """The references of an option, in their order."""
    for match in _REFERENCE.finditer(option):
        yield Reference(option, match.group(1), match.group(2) or "")


def without_references(option: str) -> str:
    """An option as Hydra can read it, with the names of stages in the place of what they left."""
    return _REFERENCE.sub(r"\1", option)


def ordered(stages: Iterable[Stage]) -> list[Stage]:
    """Stages with each behind those that it refers to, otherwise as they stand.

    Raises:
        ConfigError: a reference is to a stage that does not exist or to something that no stage leaves, or stages
            refer to one another in a circle.
    """
    by_name = {stage.name: stage for stage in stages}
    done: dict[str, Stage] = {}

    def visit(stage: Stage, path: tuple[str, ...]) -> None:
        if stage.name in path:
            circle = " -> ".join([*path[path.index(stage.name) :], stage.name])
            raise ConfigError(f"chain.stages.{stage.name} needs itself: {circle}")
        for reference in stage.references if stage.name not in done else ():
            where = f"chain.stages.{stage.name}: {reference.option}"
            if reference.stage not in by_name:
                raise ConfigError(
                    f"{where} refers to a stage {reference.stage!r}, which the chain does not have."
                    f"{suggestion(reference.stage, by_name)}"
                )
            if reference.output not in ("", *_FILES) and not reference.metric:
                near = _near(reference.output, (*_FILES, "metrics.<name>"))
                raise ConfigError(f"{where}: a stage leaves no {reference.output!r}.{near}")
            visit(by_name[reference.stage], (*path, stage.name))
        done.setdefault(stage.name, stage)

    for stage in by_name.values():
        visit(stage, ())
    return list(done.values())


def check_left(reference: Reference, stage: Stage, cfg: DictConfig) -> None:
    """Refuse a reference to what a stage will not leave.

    Args:
        reference: of another stage.
        stage: that it refers to.
        cfg: of that stage's command.

    Raises:
        ConfigError: the stage does not leave it, for example since nothing exports.
    """
    needed, metric = reference.needed, reference.metric
    if metric and stage.command not in _MEASURED:
        raise ConfigError(f"{reference.option}: stage {stage.name} is rlhf {stage.command}, which has no metrics")
    if needed and needed not in _left_by(stage.command, cfg):
        _, how = _FILES[needed]
        raise ConfigError(f"{reference.option}: stage {stage.name} leaves no {needed}: {how}")


def _left_by(command: str, cfg: DictConfig) -> set[str]:
    """Files and folders of the table that a job writes."""
    if command != "train":
        return _LEFT_BY.get(command, set())
    nodes: list[Any] = [node for node in (cfg.get("callbacks") or {}).values() if node]
    exports = [node for node in nodes if str(node.get("_target_")).endswith(".HFExport")]
    left = {"checkpoint"} if any(str(node.get("_target_")).endswith(".LastCheckpoint") for node in nodes) else set()
    left |= {"export"} if any(node.get("last", True) for node in exports) else set()
    left |= {"best"} if any(node.get("monitor") for node in exports) else set()
    return left | ({"groups"} if cfg.get("rounds") else set())


def _near(name: str, names: Sequence[str] = COMMANDS) -> str:
    return suggestion(name, names)
