"""The stages of chains, in the order in which they ran: times, metrics, and samples before and after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.report.metrics import shown
from rlhf_lightning.report.reading import CHAIN, Run, read_json, read_run
from rlhf_lightning.report.samples import Column, SampleTable, side_by_side

#: Metrics of a stage in its row; the run's own table has all.
_METRICS = 5


@dataclass(frozen=True)
class Stage:
    """One stage of a chain.

    Attributes:
        name: the stage's name.
        command: the ``rlhf`` command that it runs.
        needs: names of the stages whose outputs it uses.
        run: the stage's files.
        metrics: names and last values of the most informative metrics.
    """

    name: str
    command: str
    needs: tuple[str, ...]
    run: Run
    metrics: tuple[tuple[str, float], ...]

    @property
    def title(self) -> str:
        """Method of the stage, or its command if it has none."""
        return self.run.title if self.command == "train" else f"rlhf {self.command}"


@dataclass(frozen=True)
class Chain:
    """Stages that ran one after the other.

    Attributes:
        title: its folder and size, and in a sweep what varies.
        stages: in the order in which they ran.
        samples: before and after every stage that sampled, for the prompts that most stages share.
    """

    title: str
    stages: tuple[Stage, ...]
    samples: SampleTable

    @property
    def seconds(self) -> float:
        """Total time of all stages."""
        return sum(float(stage.run.result.get("seconds") or 0) for stage in self.stages)


def read_chains(paths: Sequence[str | Path]) -> list[Chain]:
    """Read the folders that are chains; other folders are left out."""
    folders = [Path(path).expanduser() for path in paths]
    return [chain for folder in folders if (folder / CHAIN).is_file() for chain in _chains_of(folder)]


def _chains_of(folder: Path) -> list[Chain]:
    record = read_json(folder / CHAIN)
    chains = []
    for content in record.get("chains") or ():
        stages = tuple(_stage(folder, entry) for entry in content["stages"])
        title = " ".join([folder.parent.name, str(record.get("size")), *content["options"]])
        chains.append(Chain(title, stages, side_by_side(list(_columns(stages)), prompts=4)))
    return chains


def _stage(folder: Path, entry: dict[str, Any]) -> Stage:
    run = read_run(folder / entry["folder"], entry["name"])
    names = shown(run.metrics, _METRICS)
    metrics = tuple((name, run.metrics[name]) for name in names)
    return Stage(entry["name"], entry["command"], tuple(entry["needs"]), run, metrics)


def _columns(stages: Sequence[Stage]) -> list[Column]:
    """Samples before and after each stage, matched by prompt alone, since each stage may have its own data set."""
    columns: list[Column] = []
    for stage in stages:
        for step, rows in sorted(stage.run.samples.items()):
            name = f"{'after' if step else 'before'} {stage.name}"
            columns.append((name, {("", str(row["prompt"])): row for row in rows if "prompt" in row}))
    return columns
