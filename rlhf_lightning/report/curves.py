"""Training curves: one panel a metric, one line a group, seeds as a band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlhf_lightning.report.drawing import Picture, canvas, plain_axes, shared_legend, wrapped
from rlhf_lightning.report.grouping import Group, shortened
from rlhf_lightning.report.palette import GREY, Style, spread
from rlhf_lightning.report.statistics import Band, band
from rlhf_lightning.report.titles import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
#: Bands are filled up to this many named groups; more fillings hide one another.
_FILLED = 8
_LEGEND_COLUMNS = 4


def draw_curves(
    groups: Sequence[Group],
    looks: Sequence[Style],
    metrics: Sequence[str],
    *,
    named: int = 8,
    most: int = 60,
    width: float = 12.0,
) -> Picture:
    """Draw one panel per metric over the optimiser steps: the mean over seeds, with a band from smallest to largest.

    In groups where no run has finished, failed and unfinished runs are drawn as far as they got.

    Args:
        groups: groups to draw, best first: the best of each colour is named, the others are grey behind them.
        looks: style of each group.
        metrics: one panel each.
        named: maximum number of groups with their own colour and a legend entry.
        most: maximum points per line; longer curves are averaged over neighbouring steps.
        width: in inches.
    """
    ends = [run.curves[name][0][-1] for group in groups for run in group.runs for name in metrics if name in run.curves]
    last = max([*ends, 1.0])  # all panels have the same steps, whenever a metric is logged first
    columns = min(_COLUMNS, max(1, len(metrics)))
    rows = max(1, math.ceil(len(metrics) / columns))
    coloured = [index for index in spread(looks, named) if any(run.curves for run in groups[index].runs)]
    legend_rows = math.ceil((len(coloured) + 1) / _LEGEND_COLUMNS)
    with canvas(width, 2.55 * rows + 0.3 * legend_rows + 0.2, rows, columns) as (figure, grid):
        for axes, metric in zip(grid.flat, metrics, strict=False):
            plain_axes(axes, wrapped(title_of(metric)))
            _panel(axes, groups, looks, metric, coloured, most)
            axes.set_xlim(-0.02 * last, 1.02 * last)
        for axes in list(grid.flat)[len(metrics) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("optimiser step")
        _legend(figure, groups, looks, coloured)
    alt = f"curves of {', '.join(map(title_of, metrics))} for {', '.join(groups[index].label for index in coloured)}"
    return Picture(figure, "curves", alt)


def band_of(group: Group, metric: str, most: int) -> Band | None:
    """Pool a metric of a group over its finished runs (over all runs if none has finished); None if not logged."""
    runs = group.done or group.runs
    curves = [run.curves[metric] for run in runs if metric in run.curves]
    return band(curves, most) if curves else None


def _panel(
    axes: Axes, groups: Sequence[Group], looks: Sequence[Style], metric: str, coloured: Sequence[int], most: int
) -> None:
    """Draw the unnamed groups in grey as one artist, then the named groups, the best on top."""
    from matplotlib.collections import LineCollection

    behind = [band_of(group, metric, most // 2) for i, group in enumerate(groups) if i not in coloured]
    lines = [np.column_stack([one.steps, one.mean]) for one in behind if one is not None]
    if lines:
        axes.add_collection(LineCollection(lines, colors=GREY, linewidths=0.6, alpha=0.35, zorder=1))
    drawn = [one for one in behind if one is not None]
    for index in reversed(coloured):
        one = band_of(groups[index], metric, most)
        if one is not None:
            drawn.append(one)
            _line(axes, one, looks[index], index, filled=len(coloured) <= _FILLED)
    _limits(axes, drawn)


def _line(axes: Axes, one: Band, look: Style, index: int, *, filled: bool) -> None:
    alone = len(one.steps) == 1
    axes.plot(
        one.steps, one.mean, color=look.colour, linewidth=1.6, dashes=look.dash or (None, None),
        marker=look.marker if alone or len(one.steps) <= 12 else None, markersize=4, zorder=4, gid=f"group-{index}",
    )  # fmt: skip
    if filled and (one.high > one.low).any():
        axes.fill_between(one.steps, one.low, one.high, color=look.colour, alpha=0.14, linewidth=0, zorder=2)


def _limits(axes: Axes, drawn: Sequence[Band]) -> None:
    """Keep all lines in view, but clip single spikes: use the inner 99 % of the means if outliers are far away."""
    from matplotlib.ticker import MaxNLocator

    if not drawn:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center")
        return
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    means = np.concatenate([one.mean for one in drawn])
    everything = np.concatenate([part for one in drawn for part in (one.low, one.high)])
    low, high = float(everything.min()), float(everything.max())
    inner_low, inner_high = np.percentile(means, [0.5, 99.5])
    inner = float(inner_high - inner_low)
    if len(means) > 40 and inner > 0 and high - low > 6 * inner:
        low, high = float(inner_low) - 0.3 * inner, float(inner_high) + 0.3 * inner
    air = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - air, high + air)


def _legend(figure: Figure, groups: Sequence[Group], looks: Sequence[Style], coloured: Sequence[int]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=look.colour, linewidth=2, dashes=look.dash or (None, None), label=shortened(groups[i].label)
        )
        for i, look in enumerate(looks)
        if i in coloured
    ]
    others = sum(any(run.curves for run in group.runs) for group in groups) - len(coloured)
    if others:
        handles.append(Line2D([], [], color=GREY, linewidth=1, label=f"{others} other{'' if others == 1 else 's'}"))
    if len(groups) > 1:
        shared_legend(figure, handles)
