"""``rlhf game``: models that are trained in turn, each by an ordinary ``rlhf train`` in a folder of its own.

Every stage is an ordinary job, with a digest, a lock and an exact resume of its own. The same command resumes a game
that was killed: finished stages are kept, the interrupted one is resumed from its checkpoint, and a stage whose options
changed is refused by name before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.folder import RunFolder, held
from rlhf_lightning.cli.launch import Arguments, split
from rlhf_lightning.cli.launch import main as launch
from rlhf_lightning.cli.overrides import quoted, readable
from rlhf_lightning.cli.results import duration
from rlhf_lightning.cli.sweep import short
from rlhf_lightning.cli.train import new_folder
from rlhf_lightning.cli.trust import commanded, may_be_given
from rlhf_lightning.files import write_atomically
from rlhf_lightning.rounds.game import Game, Move, latest, without_references

FILE = "game.json"
#: First parts of the keys that are the game's; every other option is one of its stages.
_OF_GAME = ("experiment", "game", "paths")


@dataclass(frozen=True)
class Command:
    """A command line, sorted by whom its options are for."""

    flags: Arguments
    of_game: list[str]  #: of the game itself
    stages: list[str]  #: of all stages, or ``<stage>.<option>`` of one

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Command:
        """Sort arguments.

        Raises:
            ConfigError: a flag that games do not have.
        """
        flags = split(arguments)
        if other := [flag for flag in flags.flags if flag not in ("--config-dir", "-cd", *flags.config_dirs)]:
            raise ConfigError(f"rlhf game has no flag {other[0]}: rlhf train -m is for sweeps over one job")
        keys = [option.lstrip("+~").partition("=")[0] for option in flags.overrides]
        of_game = [option for option, key in zip(flags.overrides, keys, strict=True) if key.split(".")[0] in _OF_GAME]
        folders = [option for option in of_game if option.startswith("paths.") and "output_dir" not in option]
        of_stages = [option for option in flags.overrides if option not in of_game or option in folders]
        return cls(flags, of_game, of_stages)


def main(arguments: Sequence[str]) -> int:
    """Play the game of a command line.

    Returns:
        0; else the exit code of the stage that ended it.
    """
    command = Command.of(arguments)
    cfg = compose("game", command.of_game, config_dirs=command.flags.config_dirs)
    named = cfg.paths.output_dir is not None
    folder = Path(cfg.paths.output_dir) if named else new_folder(Path(cfg.paths.runs) / "game")
    game = game_of(cfg, folder, command.stages)
    with held(folder):
        left = list(checked(game, command.flags.config_dirs))
        _write(game)
        for move in left:
            say(f"[bold]{move.name}[/]  {short(move.folder)}")
            if code := _play(move, command.flags.config_dirs):
                again = f"the same command with paths.output_dir={folder}" if not named else "the same command"
                say(f"the game ended in {move.name} (exit code {code}); {again} resumes there")
                return code
    played = f"{game.rounds} round{'s' if game.rounds > 1 else ''} of {', '.join(game.stages)}"
    say(f"played {played} in {short(folder)}; rlhf report {short(folder)}")
    return 0


def game_of(cfg: DictConfig, folder: Path, options: Sequence[str]) -> Game:
    """The game that a configuration and further options of its stages describe.

    Args:
        cfg: of the command.
        folder: of the game.
        options: of the command line: of every stage, or of one where they begin with its name.

    Raises:
        ConfigError: a stage is described wrongly, or names what only the command line may.
    """
    node = OmegaConf.to_container(cfg.game, resolve=True)
    assert isinstance(node, dict)
    stages = {str(name): [str(option) for option in lines or ()] for name, lines in (node["stages"] or {}).items()}
    shared = [str(option) for option in node["shared"] or ()]
    for name, lines in {"shared": shared, **{f"stages.{name}": lines for name, lines in stages.items()}}.items():
        _check_trusted(name, lines)
    everyone = [option for option in options if _stage_of(option) not in stages]
    for stage, lines in stages.items():
        inside = [_inside(option) for option in options if _stage_of(option) == stage]
        stages[stage] = [*shared, *lines, *everyone, *inside]
    try:
        return Game(folder, int(node["rounds"]), stages)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _stage_of(option: str) -> str:
    key, dot, _ = option.partition("=")[0].lstrip("+~").partition(".")
    return key if dot else ""


def _inside(option: str) -> str:
    """An option of one stage as that stage's job knows it."""
    signs = option[: len(option) - len(option.lstrip("+~"))]
    return signs + option[len(signs) :].partition(".")[2]


def _check_trusted(name: str, options: Sequence[str]) -> None:
    """Refuse options of a yaml that count on the command line alone: a stage's job would take them for the user's."""
    for option in options:
        keys = commanded(readable([without_references(option)]))
        if wrong := sorted(key for key in keys if not may_be_given(key) or key.split(".")[0] in ("hydra", "paths")):
            raise ConfigError(f"game.{name}: {wrong[0]} stands in a yaml, and counts only on the command line")


def checked(game: Game, config_dirs: Sequence[str] = ()) -> Iterator[Move]:
    """The moves that are not done, after a look at all: options, and the folders that hold jobs of them already.

    Raises:
        ConfigError: an option of a stage is wrong, or its folder holds a job of other options; the message names it.
    """
    for move in list(game.moves()):
        try:
            cfg = compose("train", [*move.options, _folder(move)], config_dirs=config_dirs)
            folder = RunFolder(cfg)
            folder.check()
        except ConfigError as error:
            raise ConfigError(f"{move.name}: {error}") from error
        if (result := folder.finished) is None:
            yield move
        else:
            say(f"{move.name} [dim]was done before, {duration(result.seconds)} saved[/]")


def _play(move: Move, config_dirs: Sequence[str]) -> int:
    flags = [part for folder in config_dirs for part in ("--config-dir", folder)]
    try:
        return launch(["train", *flags, *move.options, _folder(move)])
    except SystemExit as stop:  # a signal: the job has saved where it is
        return int(stop.code or 0)


def _folder(move: Move) -> str:
    return f"paths.output_dir={quoted(move.folder.absolute())}"


def _write(game: Game) -> None:
    """Keep what is played, for people."""
    text = json.dumps({"rounds": game.rounds, "stages": {name: latest(lines) for name, lines in game.stages.items()}})
    write_atomically(game.folder / FILE, lambda temporary: temporary.write_text(text + "\n"))
