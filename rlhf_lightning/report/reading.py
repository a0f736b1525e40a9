"""Reading of run folders: configuration, outcome, curves, samples and rewards. Plain files, no torch."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from rlhf_lightning.yaml_text import OversizedYamlError, read_yaml

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  #: steps, values
T = TypeVar("T")

#: Files by which a run's folder is recognised; a job that failed during composition has the last one only.
CONFIG, RESULT = "config.yaml", "result.json"
#: File by which a chain's folder is recognised: it lists the folders of its stages. Older stages may be there too.
CHAIN = "chain.json"
#: File in the folder of a stage: its name, and what it computes.
STAGE = "stage.json"
#: Never searched for runs.
_SKIPPED = frozenset({".hydra", "checkpoints", "export", "samples", "report", ".git", ".venv", "node_modules"})
#: Old names of log-ratios on the data's responses, which older runs called KL, and their present names.
_RENAMED = {
    "train/kl/reference": "train/log_ratio/mean",
    "train/kl/k3": "train/log_ratio/k3",
    "train/kl/mismatched": "train/log_ratio/mismatched",
    "val/kl/mismatched": "val/log_ratio/mismatched",
}
#: Logged only by methods that learn from their own samples, where it is a KL under both names.
_SAMPLED = "train/kl/token"


class ReportError(ValueError):
    """Runs that cannot be reported on; the message is shown to the user."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: folder of the run.
        name: short name, unique in the report: the folder relative to the common parent.
        config: resolved nested configuration; empty if the job ended before it was written.
        result: contents of ``result.json``; empty if there is none.
        choices: chosen file of each config group (``method: dpo``), as far as Hydra recorded them.
        stage: name of the chain's stage; "" for other runs.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    choices: Mapping[str, str] = field(default_factory=dict)
    stage: str = ""

    @property
    def state(self) -> str:
        """State: ``done``, ``failed``, ``stopped``, or ``unfinished`` for a run that is still running or was killed."""
        return str(self.result.get("status") or "unfinished")

    @property
    def error(self) -> str:
        """First line of the error."""
        return str(self.result.get("error") or "").split("\n")[0]

    @property
    def seed(self) -> int | None:
        """Seed of the run; None if its configuration has none."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def method(self) -> str:
        """The name of the method's yaml file, else of its loss or module."""
        chosen = self.choices.get("method")
        if chosen:
            return chosen.rpartition("/")[2]
        method = self.config.get("method")
        method = method if isinstance(method, Mapping) else {}
        loss = method.get("loss")
        target = (loss.get("_target_") if isinstance(loss, Mapping) else None) or method.get("_target_")
        return str(target or "unknown").rpartition(".")[2]

    @property
    def title(self) -> str:
        """The method, with the name of its rounds if one was chosen."""
        rounds = self.choices.get("rounds")
        return f"{self.method} rounds={rounds}" if rounds and rounds != "none" else self.method

    @property
    def module(self) -> str:
        """Class of the method's module, which stands for its data flow."""
        method = self.config.get("method")
        return str((method.get("_target_") if isinstance(method, Mapping) else "") or "").rpartition(".")[2].lower()

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Results of the run: the last value of every metric that was logged after training began.

        Values measured before the first step are not results. Neither is an older value of a metric that is null in
        ``result.json``: its last value was not finite, or missing in the last validation. Without ``result.json``, the
        numbers come from the curves.
        """
        recorded = self.result.get("metrics")
        recorded = renamed(recorded) if isinstance(recorded, Mapping) else {}
        last = {
            name: float(values[-1])
            for name, (steps, values) in self.curves.items()
            if name not in recorded and not (name.startswith("val/") and steps[-1] == 0)
        }
        return last | {
            name: float(v) for name, v in recorded.items() if isinstance(v, (int, float)) and math.isfinite(v)
        }

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Steps and values of each metric of ``metrics.csv``, without gaps and non-finite values."""
        return read_curves(self.folder / "metrics.csv")

    @cached_property
    def samples(self) -> dict[int, list[dict[str, Any]]]:
        """First and last sample table by step: rows with ``prompt``, ``response``, ``row`` ..."""
        files = sorted((self.folder / "samples").glob("step_*.jsonl"))
        return {int(file.stem.removeprefix("step_")): read_rows(file) for file in dict.fromkeys(files[:1] + files[-1:])}

    @cached_property
    def rewards(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Implicit rewards of the chosen and the rejected response of each validation pair; None if not saved."""
        try:
            with (self.folder / "implicit_rewards.npz").open("rb") as file, np.load(file) as pairs:
                chosen, rejected = pairs["chosen"], pairs["rejected"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        kept = np.isfinite(chosen) & np.isfinite(rejected)
        return (chosen[kept], rejected[kept]) if kept.any() else None


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read the runs in folders, in subfolders (sweeps) and behind globs, each once, in the order of their names.

    Args:
        paths: run folders, sweep folders, files of a run, or globs of these.

    Raises:
        ReportError: a path does not exist, or none of them has a run.
    """
    patterns = [str(path) for path in paths]
    folders: dict[Path, None] = {}
    for path in patterns:
        run_folders = [folder for start in _expanded(path) for folder in find_runs(start)]
        folders.update(dict.fromkeys(folder.resolve() for folder in run_folders))
    if not folders:
        where = ", ".join(patterns) or "no paths"
        raise ReportError(
            f"no runs in {where}\n  A run's folder has a {CONFIG} or a {RESULT}. Give run folders, a sweep's folder or "
            "a glob, for example rlhf report multirun/2026-01-31_12-00-00 runs/train/*"
        )
    names = _names(list(folders))
    return [read_run(folder, name) for folder, name in sorted(zip(folders, names, strict=True), key=_by_name)]


def find_runs(start: Path) -> Iterator[Path]:
    """Find folders of runs at or below a folder; the inside of a run is not searched."""
    for folder, below, files in os.walk(start):
        below[:] = sorted(name for name in below if name not in _SKIPPED)
        if CHAIN in files:
            below.clear()
            yield from _runs_of_chain(Path(folder))
        elif CONFIG in files or RESULT in files:
            below.clear()
            yield Path(folder)


def _runs_of_chain(folder: Path) -> Iterator[Path]:
    """Find the measured stages of a chain, each once; a game contributes the runs that it consists of."""
    stages = {
        str(stage["folder"]): stage["command"]
        for chain in read_json(folder / CHAIN).get("chains") or ()
        for stage in chain["stages"]
    }
    for below, command in stages.items():
        if command in ("train", "evaluate") or read_json(folder / below / RESULT).get("metrics"):
            yield folder / below
        elif command == "game":
            yield from (run for part in sorted((folder / below).glob("*/")) for run in find_runs(part))


def read_run(folder: Path, name: str) -> Run:
    """Read the small files of a run; curves, samples and rewards are read on first use."""
    config, stage = _yaml(folder / CONFIG), read_json(folder / STAGE)
    if config is None and stage:
        config = dict(stage.get("computes") or {})
    if config is None:
        composed = _yaml(folder / ".hydra" / "config.yaml")
        config = resolved(composed, folder) if composed else {}
    hydra = _yaml(folder / ".hydra" / "hydra.yaml") or {}
    choices = ((hydra.get("hydra") or {}).get("runtime") or {}).get("choices") or {}
    result = read_json(folder / RESULT)
    chosen = {k: str(v) for k, v in choices.items() if v is not None}
    return Run(folder, name, config, result, chosen, str(stage.get("stage") or ""))


def resolved(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the plain references (``${seed}``) of a configuration by their values, one step deep.

    Args:
        config: the configuration as Hydra saved it.
        folder: folder of the run, used for ``paths.output_dir``.
    """
    root = {**config, "paths": {**(config.get("paths") or {}), "output_dir": str(folder)}}

    def follow(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: follow(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [follow(inner) for inner in value]
        if not isinstance(value, str) or not value.startswith("${") or ":" in value:
            return value
        name, _, rest = value[2:].partition("}")
        node: Any = root
        for part in name.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return f"{node}{rest}" if rest else node

    followed: dict[str, Any] = follow(root)
    return followed


def read_curves(file: Path) -> dict[str, Curve]:
    """Read the curves of a metrics file; a last line that a kill has cut short is left out."""
    try:
        with file.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.reader(handle))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    if not rows or "step" not in rows[0]:
        return {}
    header = rows[0]
    table = np.array([[_number(cell) for cell in row] for row in rows[1:] if len(row) == len(header)])
    if not table.size:
        return {}
    steps = table[:, header.index("step")]
    curves = {}
    for column, name in enumerate(header):
        values = table[:, column]
        kept = np.isfinite(values) & np.isfinite(steps)
        if name not in ("step", "epoch") and kept.any():
            curves[name] = (steps[kept], values[kept])
    return renamed(curves)


def renamed(metrics: Mapping[str, T]) -> dict[str, T]:
    """Give metrics their present names; a run that was resumed with a newer version keeps the newer values."""
    if _SAMPLED in metrics:
        return dict(metrics)
    older = {_RENAMED[name]: value for name, value in metrics.items() if name in _RENAMED}
    return older | {name: value for name, value in metrics.items() if name not in _RENAMED}


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSONL file; unreadable lines are left out."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    return [row for line in lines if (row := read_row(line)) is not None]


def read_row(line: str) -> dict[str, Any] | None:
    """Read a line of JSONL; None if it cannot be read."""
    try:
        row = json.loads(line) if line.strip() else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _expanded(path: str) -> list[Path]:
    """Expand a path: matches of a glob, the folder of a file, or the path itself.

    Raises:
        ReportError: the path does not exist, or the glob matches nothing.
    """
    plain = Path(path).expanduser()
    matches = [plain] if plain.exists() else [Path(match) for match in sorted(glob.glob(str(plain), recursive=True))]
    if not matches:
        raise ReportError(f"{path}: there is no such file or folder{_neighbours(plain)}")
    return [match if match.is_dir() else match.parent for match in matches]


def _neighbours(path: Path) -> str:
    """List similar and neighbouring folders, for the end of a message."""
    import difflib

    parent = next((folder for folder in path.parents if folder.is_dir()), Path("."))
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and entry.name not in _SKIPPED)
    missing = path.relative_to(parent).parts[0] if path.is_relative_to(parent) and path != parent else path.name
    close = difflib.get_close_matches(missing, names, n=1, cutoff=0.5)
    hint = f". Did you mean {parent / close[0]}?" if close else ""
    return f"{hint}\n  {parent} has: {', '.join(names[-8:])}" if names else hint


def _names(folders: Sequence[Path]) -> list[str]:
    """Names of folders relative to their common parent."""
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [folder.relative_to(common).as_posix() for folder in folders]


def _by_name(entry: tuple[Path, str]) -> list[tuple[int, str]]:
    """Sort key that puts numbered folders in the order of their numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in entry[1].split("/")]


def _yaml(file: Path) -> dict[str, Any] | None:
    try:
        value = read_yaml(file)
    except OversizedYamlError as error:
        raise ReportError(f"{file}: {error}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return value if isinstance(value, dict) else None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if it cannot be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(cell: str) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return math.nan
