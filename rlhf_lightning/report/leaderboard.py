"""One row per group, seeds pooled, best first; runs that did not finish are counted."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.report.grouping import Group, differing, plain
from rlhf_lightning.report.metrics import Mode, mode_of
from rlhf_lightning.report.reading import Run
from rlhf_lightning.report.statistics import Pooled, pooled


@dataclass(frozen=True)
class Row:
    """A group in the leaderboard.

    Attributes:
        group: the group.
        values: each metric pooled over the finished runs; n = 0 if none logged it.
        states: number of runs by state.
        steps: optimiser steps of the finished runs.
        seconds: duration of the finished runs.
        best: metrics in which no group is better.
    """

    group: Group
    values: Mapping[str, Pooled]
    states: Mapping[str, int]
    steps: Pooled
    seconds: Pooled
    best: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """Label of the group."""
        return self.group.label

    @property
    def unfinished(self) -> str:
        """Unfinished runs by state: ``1 failed, 2 stopped``; empty if every run is done."""
        return ", ".join(f"{count} {state}" for state, count in self.states.items() if state != "done")


@dataclass(frozen=True)
class Leaderboard(Sequence[Row]):
    """The rows, best first; groups without a finished run come last.

    Attributes:
        rows: one per group.
        metrics: columns.
        metric: metric to rank by; None if the runs share no metric with a known direction.
        mode: direction in which the metric is better.
    """

    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    metric: str | None
    mode: Mode | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def write_csv(self, file: Path) -> Path:
        """Write one line per group: label, method, family, runs by state, differing options, and every metric.

        A metric has three columns: mean, standard deviation and number of seeds. Returns the file.
        """
        metrics = sorted({name for row in self.rows for run in row.group.done for name in run.metrics})
        keys = differing([row.group.options for row in self.rows])
        states = list(dict.fromkeys(state for row in self.rows for state in row.states))
        with file.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            columns = [f"{metric} {part}" for metric in metrics for part in ("mean", "std", "n")]
            writer.writerow(_cells(["rank", "label", "method", "family", *states, *keys, *columns]))
            for rank, row in enumerate(self.rows, 1):
                group = row.group
                values = [pooled([r.metrics[m] for r in group.done if m in r.metrics]) for m in metrics]
                numbers = [_cell(part) for value in values for part in (value.mean, value.std, value.n)]
                counts = [row.states.get(state, 0) for state in states]
                options = [plain(group.options[key]) if key in group.options else "" for key in keys]
                line = [rank, group.label, group.method, group.family, *counts, *options, *numbers]
                writer.writerow(_cells(line))
        return file

    def _repr_html_(self) -> str:
        from html import escape

        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *self.metrics, "n"))
        body = "".join(
            f"<tr><th>{escape(row.label)}</th>"
            + "".join(f"<td>{escape(str(row.values[name]))}</td>" for name in self.metrics)
            + f"<td>{len(row.group.done)}</td></tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def rank(groups: Sequence[Group], metrics: Sequence[str], metric: str | None, mode: Mode | None = None) -> Leaderboard:
    """Rank groups.

    Args:
        groups: groups of a report.
        metrics: columns.
        metric: metric to rank by; None: keep the order of the groups.
        mode: direction that is better; None: taken from the metric's name, ``max`` if the name does not tell.
    """
    mode = (mode or mode_of(metric) or "max") if metric else None
    rows = [_row(group, metrics) for group in groups]
    ways = {name: mode if name == metric else mode_of(name) for name in metrics}
    if len({group.method for group in groups}) > 1:  # losses of different methods have different scales
        ways |= {name: None for name in metrics if name.endswith("/loss")}
    winners = {name: _winners(rows, name, way) for name, way in ways.items()}
    rows = [
        Row(r.group, r.values, r.states, r.steps, r.seconds, frozenset(n for n, w in winners.items() if i in w))
        for i, r in enumerate(rows)
    ]
    if metric is not None:
        sign = -1.0 if mode == "max" else 1.0
        values = {id(row): pooled(_of(row.group, metric)) for row in rows}
        rows.sort(key=lambda r: (not values[id(r)].n, sign * values[id(r)].mean if values[id(r)].n else 0.0))
    return Leaderboard(tuple(rows), tuple(metrics), metric, mode)


def write_runs(runs: Sequence[Run], groups: Sequence[Group], file: Path) -> Path:
    """Write ``runs.csv``: one line per run with group, seed, state, differing options, every metric, and the error."""
    metrics = sorted({name for run in runs for name in run.metrics})
    keys = differing([group.options for group in groups])
    home = {id(run): group for group in groups for run in group.runs}
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        head = ["run", "group", "seed", "state", "steps", "seconds", *keys, *metrics, "error", "folder"]
        writer.writerow(_cells(head))
        for run in runs:
            options = home[id(run)].options
            facts = [
                run.name,
                home[id(run)].label,
                run.seed,
                run.state,
                steps_of(run),
                run.result.get("seconds"),
            ]
            option_cells = [plain(options[key]) if key in options else "" for key in keys]
            numbers = [_cell(run.metrics[name]) if name in run.metrics else "" for name in metrics]
            writer.writerow(_cells([*facts, *option_cells, *numbers, run.error, str(run.folder)]))
    return file


def steps_of(run: Run) -> int:
    """Optimiser steps that a run took; without a result, the last logged step."""
    steps = run.result.get("steps")
    if isinstance(steps, int) and steps:
        return steps
    return int(max((float(curve[0][-1]) + 1 for curve in run.curves.values()), default=0))


def _row(group: Group, metrics: Sequence[str]) -> Row:
    states: dict[str, int] = {}
    for run in group.runs:
        states[run.state] = states.get(run.state, 0) + 1
    seconds = [float(run.result["seconds"]) for run in group.done if run.result.get("seconds")]
    values = {name: pooled(_of(group, name)) for name in metrics}
    return Row(group, values, states, pooled([float(steps_of(run)) for run in group.done]), pooled(seconds))


def _of(group: Group, metric: str) -> list[float]:
    return [run.metrics[metric] for run in group.done if metric in run.metrics]


def _winners(rows: Sequence[Row], name: str, mode: Mode | None) -> set[int]:
    """The best rows of a column; none if all are equal or the better direction is unknown."""
    values = {i: row.values[name].mean for i, row in enumerate(rows) if row.values[name].n}
    if mode is None or len(set(values.values())) < 2:
        return set()
    best = max(values.values()) if mode == "max" else min(values.values())
    return {i for i, value in values.items() if value == best}


def _cell(value: float) -> str:
    return "" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def _cells(values: Iterable[Any]) -> list[Any]:
    """Make cells safe: no spreadsheet reads one as a formula, and no terminal as a control sequence."""
    return [_safe(value) if isinstance(value, str) else value for value in values]


def _safe(text: str) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
