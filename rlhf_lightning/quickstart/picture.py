"""The quickstart's picture: the course of the run, and its effect on the responses."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER, HELD_OUT = "#9aa5b1", "#792ee5", "#f28e2b"


def read_curve(metrics: Path, name: str) -> tuple[list[int], list[float]]:
    """Read steps and values of one metric from ``metrics.csv``; empty if it was never logged."""
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]
    return [step for step, _ in rows], [value for _, value in rows]


def smoothed(values: Sequence[float], window: int = 5) -> list[float]:
    """Smooth values by a trailing mean over up to ``window`` of them."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])]


def draw(metrics: Path, before: Sequence[float], after: Sequence[float], path: Path) -> None:
    """Write a PNG: loss and margin over the steps, and the distribution of the rule's score before and after.

    Args:
        metrics: the run's ``metrics.csv``.
        before: the rule's score of every sampled response of the untrained model.
        after: scores of the trained model's responses.
        path: the PNG to write.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        curves = figure.subplots(1, 3)
        _curve(curves[0], metrics, "loss", "DPO loss (nats)")
        _curve(curves[1], metrics, "reward/margin", "implicit-reward margin (nats)")
        _distributions(curves[2], before, after)
        figure.savefig(path, dpi=150)


def _curve(axes: Axes, metrics: Path, name: str, title: str) -> None:
    steps, values = read_curve(metrics, f"train/{name}")
    axes.plot(steps, values, color=AFTER, alpha=0.25, linewidth=1)
    axes.plot(steps, smoothed(values), color=AFTER, label="training pairs, mean of 5 steps")
    steps, values = read_curve(metrics, f"val/{name}")
    axes.plot(steps, values, color=HELD_OUT, marker="o", markersize=4, label="held-out pairs")
    axes.set(title=title, xlabel="optimiser step")
    axes.legend(frameon=False)


def _distributions(axes: Axes, before: Sequence[float], after: Sequence[float]) -> None:
    for values, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        mean = sum(values) / len(values)
        bins = [0.25 * i for i in range(-4, 9)]
        axes.hist(values, bins=bins, color=colour, alpha=0.55, label=f"{label}: mean {mean:.2f}")
        axes.axvline(mean, color=colour, linewidth=2)
    axes.set(title="rule's score of new responses", xlabel="score", ylabel="responses")
    axes.legend(frameon=False, loc="upper left")
