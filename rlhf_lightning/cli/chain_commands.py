"""Running the stages of a chain, whatever their commands, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lightning.cli.overrides import quoted
from rlhf_lightning.cli.stages import folder_option, run_job_of_stage


@dataclass(frozen=True)
class Outcome:
    """Outcome of a stage.

    Attributes:
        code: its exit code.
        metrics: of a command that writes no result of its own.
    """

    code: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


def run_stage(command: str, options: Sequence[str], folder: Path, config_flags: Sequence[str]) -> Outcome:
    """Run or resume a stage in this process.

    Args:
        command: of ``rlhf``.
        options: of the command, with what other stages left.
        folder: of the stage.
        config_flags: ``--config-dir`` and a folder, as often as there are such folders.
    """
    if command in ("train", "evaluate"):
        return Outcome(run_job_of_stage(command, options, folder, config_flags))
    from rlhf_lightning.cli import export, game, generate, optimize_prompt, steer

    dirs = list(config_flags[1::2])
    if command == "game":
        return Outcome(game.main([*config_flags, *options, folder_option(folder)]))
    if command == "export":
        return Outcome(export.main([*options, f"output={quoted(folder / 'export' / 'last')}"]))
    if command == "optimize_prompt":  # in a folder of its own, which has a result.json of its own
        return Outcome(0, optimize_prompt.run([*options, folder_option(folder / "search")], dirs))
    if command == "steer":
        steer.run([*options, f"output={quoted(folder / 'vectors.safetensors')}"], dirs)
        return Outcome()
    return Outcome(0, generate.run([*options, f"output={quoted(folder / 'responses.jsonl')}"], dirs))
