"""A metric over one swept option, a line a method: how much a method depends on its beta."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lightning.report.drawing import Picture, canvas, plain_axes
from rlhf_lightning.report.grouping import Group, differing, plain, short_names
from rlhf_lightning.report.palette import COLOURS, DASHES, MARKERS
from rlhf_lightning.report.statistics import Pooled, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = list[tuple[float, Pooled]]  #: value of the option, metric over the seeds


def lines_of(groups: Sequence[Group], key: str, metric: str) -> dict[str, Line]:
    """The metric at each value of an option by method, values ascending.

    Groups of one method that also differ in other options become lines of their own, named after those.
    """
    lines: dict[str, Line] = {}
    for method in dict.fromkeys(group.method for group in groups):
        mine = [group for group in groups if group.method == method and _is_number(group.options.get(key))]
        others = [name for name in differing([group.options for group in mine]) if name != key] if mine else []
        named = short_names(others)
        for group in mine:
            value = pooled([run.metrics[metric] for run in group.done if metric in run.metrics])
            if value.n:
                parts = [f"{named[name]}={plain(group.options[name])}" for name in others if name in group.options]
                lines.setdefault(" ".join([method, *parts]), []).append((float(group.options[key]), value))
    return {label: sorted(line, key=lambda point: point[0]) for label, line in lines.items()}


def draw_sensitivity(
    groups: Sequence[Group],
    key: str,
    metrics: Sequence[str],
    *,
    most: int = 16,
    width: float = 12.0,
) -> Picture | None:
    """One panel a metric, one line a method over the values of an option; bars are standard deviations over seeds.

    The option's axis is logarithmic where its values span more than a factor of ten.

    Args:
        groups: of a sweep.
        key: dotted key of the option, for example ``method.loss.beta``.
        metrics: one panel each.
        most: lines; those with the most points come first.
        width: in inches.

    Returns:
        None when no method has two values of the option.
    """
    panels = [(metric, _longest(lines_of(groups, key, metric), most)) for metric in metrics]
    panels = [(metric, lines) for metric, lines in panels if any(len(line) > 1 for line in lines.values())]
    if not panels:
        return None
    labels = list(dict.fromkeys(label for _, lines in panels for label in lines))
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (width * (0.35 + 0.65 * columns / 3), 3.1 * rows + 0.3 * math.ceil(len(labels) / 4))
    with canvas(*size, rows, columns) as (figure, grid):
        for axes, (metric, lines) in zip(grid.flat, panels, strict=False):
            plain_axes(axes, metric, key)
            _panel(axes, lines, labels)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        handles = _handles(labels)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4 * columns, 8, len(labels)), fontsize=8.5)
    alt = f"{', '.join(metric for metric, _ in panels)} over {key} for {', '.join(labels)}"
    return Picture(figure, f"over {key}", alt)


def _longest(lines: dict[str, Line], most: int) -> dict[str, Line]:
    kept = sorted(lines, key=lambda label: -len(lines[label]))[:most]
    return {label: line for label, line in lines.items() if label in kept}


def _panel(axes: Axes, lines: dict[str, Line], labels: Sequence[str]) -> None:
    values = [value for line in lines.values() for value, _ in line]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_xscale("log")
    for label, line in lines.items():
        index = labels.index(label)
        x = [value for value, _ in line]
        spread = [point.std if math.isfinite(point.std) else 0.0 for _, point in line]
        axes.errorbar(
            x, [point.mean for _, point in line], yerr=spread if np.any(spread) else None, color=_colour(index),
            marker=MARKERS[index % len(MARKERS)], markersize=5, linewidth=1.5, elinewidth=0.9, capsize=2.5,
            linestyle=(0, _dash(index)) if _dash(index) else "-",
        )  # fmt: skip


def _handles(labels: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=_colour(i), marker=MARKERS[i % len(MARKERS)], dashes=_dash(i) or (None, None), label=label)
        for i, label in enumerate(labels)
    ]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _dash(index: int) -> tuple[float, ...]:
    return DASHES[(index // len(COLOURS)) % len(DASHES)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
