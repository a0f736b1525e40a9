"""``rlhf game``: models that are trained in turn, each by an ordinary ``rlhf train`` in a folder of its own.

Every stage is an ordinary job, with a digest, a lock and an exact resume of its own. The same command resumes a game
that was killed: finished stages are kept, the interrupted one is resumed from its checkpoint, and a stage whose options
changed is refused by name before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.console import say
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.folder import RunFolder, held
from rlhf_lightning.cli.results import duration, short
from rlhf_lightning.cli.stages import Command, by_stage, check_trusted, folder_option, run_job_of_stage
from rlhf_lightning.cli.train import new_folder
from rlhf_lightning.files import write_atomically
from rlhf_lightning.rounds.game import Game, Move, latest, without_references

FILE = "game.json"
#: First parts of the keys that are the game's; every other option is one of its stages.
_OF_GAME = ("experiment", "game", "paths")


def main(arguments: Sequence[str]) -> int:
    """Play the game of a command line.

    Returns:
        0; else the exit code of the stage that ended it.
    """
    command = Command.of("game", arguments, _OF_GAME, "rlhf train -m is for sweeps over one job")
    cfg = compose("game", command.of_command, config_dirs=command.flags.config_dirs)
    named = cfg.paths.output_dir is not None
    folder = Path(cfg.paths.output_dir) if named else new_folder(Path(cfg.paths.runs) / "game")
    game = game_of(cfg, folder, command.of_stages)
    with held(folder):
        left = list(checked(game, command.flags.config_dirs))
        _write(game)
        for move in left:
            say(f"[bold]{move.name}[/]  {short(move.folder)}")
            if code := run_job_of_stage("train", move.options, move.folder, command.config_flags):
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
    lists = {"game.shared": shared, **{f"game.stages.{name}": lines for name, lines in stages.items()}}
    check_trusted({where: [without_references(line) for line in lines] for where, lines in lists.items()})
    everyone, named = by_stage(options, stages)
    stages = {stage: [*shared, *lines, *everyone, *named[stage]] for stage, lines in stages.items()}
    try:
        return Game(folder, int(node["rounds"]), stages)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check(cfg: DictConfig, options: Sequence[str], config_dirs: Sequence[str] = ()) -> None:
    """Compose every move of a game that is a part of something larger.

    Args:
        cfg: of the command.
        options: of its command line.
        config_dirs: further folders with config groups.

    Raises:
        ConfigError: an option of a stage is wrong; the message names it.
    """
    of_stages = Command.of("game", options, _OF_GAME, "").of_stages
    for move in game_of(cfg, Path("game"), of_stages).moves():
        try:
            compose("train", move.options, config_dirs=config_dirs)
        except ConfigError as error:
            raise ConfigError(f"{move.name}: {error}") from error


def checked(game: Game, config_dirs: Sequence[str] = ()) -> Iterator[Move]:
    """The moves that are not done, after a look at all: options, and the folders that hold jobs of them already.

    Raises:
        ConfigError: an option of a stage is wrong, or its folder holds a job of other options; the message names it.
    """
    for move in list(game.moves()):
        try:
            cfg = compose("train", [*move.options, folder_option(move.folder)], config_dirs=config_dirs)
            folder = RunFolder(cfg)
            folder.check()
        except ConfigError as error:
            raise ConfigError(f"{move.name}: {error}") from error
        if (result := folder.finished) is None:
            yield move
        else:
            say(f"{move.name} [dim]was done before, {duration(result.seconds)} saved[/]")


def _write(game: Game) -> None:
    """Keep what is played, for people."""
    text = json.dumps({"rounds": game.rounds, "stages": {name: latest(lines) for name, lines in game.stages.items()}})
    write_atomically(game.folder / FILE, lambda temporary: temporary.write_text(text + "\n"))
