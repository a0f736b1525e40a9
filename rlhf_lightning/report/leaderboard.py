"""One row a group, seeds pooled, best first; every run that did not finish is accounted for."""

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
        group: that it is about.
        values: of each metric over the finished runs; n = 0 where none logged it.
        states: how many runs ended how.
        steps: optimiser steps of the finished runs.
        seconds: of the finished runs.
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
        """Of the group."""
        return self.group.label

    @property
    def unfinished(self) -> str:
        """``1 failed, 2 stopped``; empty when every run is done."""
        return ", ".join(f"{count} {state}" for state, count in self.states.items() if state != "done")


@dataclass(frozen=True)
class Leaderboard(Sequence[Row]):
    """The rows, best first; groups without a finished run come last.

    Attributes:
        rows: of the groups.
        metrics: columns.
        metric: that ranks; None when the runs share none that says which way is better.
        mode: which way.
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
        """One line a group: label, method, family, runs by state, options in which groups differ, and every metric.

        Of a metric: mean, standard deviation and number of seeds. Returns the file.
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
    """The leaderboard of groups.

    Args:
        groups: of a report.
        metrics: columns.
        metric: to rank by; None: groups stay in their order.
        mode: which way is better; None: as the metric's name says, larger where it says nothing.
    """
    mode = (mode or mode_of(metric) or "max") if metric else None
    rows = [_row(group, metrics) for group in groups]
    ways = {name: mode if name == metric else mode_of(name) for name in metrics}
    if len({group.method for group in groups}) > 1:  # every method has a loss of its own scale
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
    """``runs.csv``: one line a run with its group, seed, state, what differs, every metric, and its error."""
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
            given = [plain(options[key]) if key in options else "" for key in keys]
            numbers = [_cell(run.metrics[name]) if name in run.metrics else "" for name in metrics]
            writer.writerow(_cells([*facts, *given, *numbers, run.error, str(run.folder)]))
    return file


def steps_of(run: Run) -> int:
    """Optimiser steps that a run took; of one without a result, as far as its metrics tell."""
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
    """The best rows of a column; none where all are equal, or nobody knows which way is better."""
    values = {i: row.values[name].mean for i, row in enumerate(rows) if row.values[name].n}
    if mode is None or len(set(values.values())) < 2:
        return set()
    best = max(values.values()) if mode == "max" else min(values.values())
    return {i for i, value in values.items() if value == best}


def _cell(value: float) -> str:
    return "" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def _cells(values: Iterable[Any]) -> list[Any]:
    """The cells of a line, such that a spreadsheet takes none for a formula and a terminal none for a command."""
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
