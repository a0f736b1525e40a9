"""A game of several models: ordinary jobs that alternate, each on what the others left in their folders.

This module lists the jobs of a game and starts none: a move is a list of options of ``rlhf train``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Stands in an option for the newest folder of a stage, or for the number of the round.
_REFERENCE = re.compile(r"\{(\w+)\}")
_ROUND = "round"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Move:
    """One job of a game."""

    round: int  #: from 1
    stage: str
    folder: Path
    options: tuple[str, ...]  #: of ``rlhf train``, without its folder

    @property
    def name(self) -> str:
        """Name of the move in messages."""
        return f"round {self.round}, stage {self.stage}"


@dataclass(frozen=True)
class Game:
    """Stages that are played in turn, round after round.

    An option may name another stage in braces, ``ckpt_path={policy}/checkpoints/last.ckpt``: its folder of this round
    where it was played before, else that of the round before. An option that names a stage which was never played, as
    in the first round, is left out. ``{round}`` is the number of the round.

    Attributes:
        folder: of the game; a stage's job lies in ``round_<number>/<stage>``.
        rounds: how often every stage is played.
        stages: options of each stage's job, in the order of play; later options of a key replace earlier ones.

    Raises:
        ValueError: there is no stage or round, or an option names a stage that does not exist; the message names it.
    """

    folder: Path
    rounds: int
    stages: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"game.rounds={self.rounds} must be at least 1")
        if not self.stages:
            raise ValueError("game.stages is empty: choose a game, such as experiment=apo")
        for stage, options in self.stages.items():
            if not _NAME.fullmatch(stage) or stage == _ROUND:
                raise ValueError(f"game.stages.{stage}: a stage's name is a word in small letters, and not {_ROUND}")
            for option in options:
                self._check(stage, option)

    def _check(self, stage: str, option: str) -> None:
        if "=" not in option and not option.startswith("~"):
            raise ValueError(f"game.stages.{stage}: {option!r} is no option, which is key=value or ~key")
        if unknown := sorted(set(_REFERENCE.findall(option)) - {*self.stages, _ROUND}):
            raise ValueError(
                f"game.stages.{stage}: {option} names the stage {unknown[0]}, and there are {', '.join(self.stages)}"
            )

    def moves(self) -> Iterator[Move]:
        """The jobs in the order of play."""
        newest: dict[str, Path] = {}
        for number in range(1, self.rounds + 1):
            for stage, options in self.stages.items():
                folder = self.folder / f"round_{number}" / stage
                names = {**{name: str(path) for name, path in newest.items()}, _ROUND: str(number)}
                filled = [text for option in options if (text := _filled(option, names)) is not None]
                yield Move(number, stage, folder, tuple(latest(filled)))
                newest[stage] = folder


def latest(options: Iterable[str]) -> list[str]:
    """Options with the last one of each key, where the first one stood."""
    by_key: dict[str, str] = {}
    for option in options:
        by_key[option.partition("=")[0].lstrip("+~")] = option
    return list(by_key.values())


def without_references(option: str) -> str:
    """An option as Hydra can read it, with the names of stages instead of their folders."""
    return _REFERENCE.sub(r"\1", option)


def _filled(option: str, names: Mapping[str, str]) -> str | None:
    """An option with folders instead of stages; None where it names one that was not played."""
    if any(name not in names for name in _REFERENCE.findall(option)):
        return None
    return _REFERENCE.sub(lambda match: names[match.group(1)], option)
