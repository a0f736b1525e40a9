"""A metric over one swept option, one line per method: the sensitivity of a method to its beta, for example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.report.drawing import Picture, canvas, plain_axes, shared_legend, wrapped
from rlhf_lightning.report.grouping import Group, differing, plain, short_names
from rlhf_lightning.report.palette import COLOURS, DASHES, MARKERS, shaded
from rlhf_lightning.report.statistics import Pooled, pooled
from rlhf_lightning.report.titles import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Line = list[tuple[float, Pooled]]  #: value of the option, metric over the seeds


def lines_of(groups: Sequence[Group], key: str, metric: str) -> dict[str, Line]:
    """Values of a metric at each value of an option, by method, ascending.

    Groups of one method that also differ in other options become separate lines, named after those options.
    """
    lines: dict[str, Line] = {}
    for method in dict.fromkeys(group.method for group in groups):
        method_groups = [group for group in groups if group.method == method and _is_number(group.options.get(key))]
        others = (
            [name for name in differing([group.options for group in method_groups]) if name != key]
            if method_groups
            else []
        )
        named = short_names(others)
        for group in method_groups:
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
    colours: Mapping[str, str] | None = None,
    most: int = 10,
    width: float = 12.0,
) -> Picture | None:
    """Draw one panel per metric and one line per method over the values of an option, with standard deviations.

    The option's axis is logarithmic if its values span more than a factor of ten. Bars are standard deviations over
    seeds.

    Args:
        groups: groups of a sweep, best first.
        key: dotted key of the option, for example ``method.loss.beta``.
        metrics: one panel each.
        colours: colours of the methods; None: the palette's, in the order of the lines.
        most: maximum number of lines; if there are more, each method keeps the line with its best group.
        width: width of the figure in inches.

    Returns:
        The picture; None if no method has two values of the option.
    """
    panels = [(metric, lines_of(groups, key, metric)) for metric in metrics]
    panels = [(metric, lines) for metric, lines in panels if any(len(line) > 1 for line in lines.values())]
    if not panels:
        return None
    labels = _kept(list(dict.fromkeys(label for _, lines in panels for label in lines)), most)
    looks = _looks(labels, colours)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (width * (0.35 + 0.65 * columns / 3), 3.1 * rows + 0.3 * math.ceil(len(labels) / 4))
    with canvas(*size, rows, columns) as (figure, grid):
        for axes, (metric, lines) in zip(grid.flat, panels, strict=False):
            plain_axes(axes, wrapped(title_of(metric)), key)
            _panel(axes, lines, looks)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        shared_legend(figure, _handles(looks))
    alt = f"{', '.join(title_of(metric) for metric, _ in panels)} over {key} for {', '.join(labels)}"
    return Picture(figure, f"over {key}", alt)


def _kept(labels: Sequence[str], most: int) -> list[str]:
    """Labels of the lines to draw: all, or the first of each method if there are too many."""
    if len(labels) <= most:
        return list(labels)
    first: dict[str, str] = {}
    for label in labels:
        first.setdefault(label.split(" ")[0], label)
    return list(first.values())[:most]


def _looks(labels: Sequence[str], colours: Mapping[str, str] | None) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each line."""
    looks: dict[str, dict[str, Any]] = {}
    for index, label in enumerate(labels):
        method = label.split(" ")[0]
        member = sum(other.split(" ")[0] == method for other in looks)
        colour = shaded(colours[method], member) if colours else COLOURS[index % len(COLOURS)]
        dash = DASHES[(member if colours else index // len(COLOURS)) % len(DASHES)]
        style = (0, dash) if dash else "-"
        looks[label] = {"color": colour, "marker": MARKERS[index % len(MARKERS)], "linestyle": style}
    return looks


def _panel(axes: Axes, lines: dict[str, Line], looks: dict[str, dict[str, Any]]) -> None:
    shown = {label: line for label, line in lines.items() if label in looks}
    values = sorted({value for line in shown.values() for value, _ in line})
    if values and values[0] > 0 and values[-1] > 10 * values[0]:
        axes.set_xscale("log")
    if len(values) <= 8:
        axes.set_xticks(values, tick_labels(values, logarithmic=axes.get_xscale() == "log"))
        axes.minorticks_off()
    for label, line in shown.items():
        spread = [point.std if math.isfinite(point.std) else 0.0 for _, point in line]
        axes.errorbar(
            [value for value, _ in line], [point.mean for _, point in line], yerr=spread if any(spread) else None,
            markersize=5, linewidth=1.5, elinewidth=0.9, capsize=2.5, **looks[label],
        )  # fmt: skip


def tick_labels(values: Sequence[float], *, logarithmic: bool, least: float = 0.075) -> list[str]:
    """Label each value; a label that would overlap its right neighbour is empty.

    Args:
        values: ascending values.
        logarithmic: whether their axis is logarithmic.
        least: minimum distance between two labels, as a share of the axis.
    """
    positions = [math.log(value) if logarithmic else value for value in values]
    wide = positions[-1] - positions[0] or 1.0
    labels, right = [""] * len(values), math.inf
    for index in reversed(range(len(values))):
        if right - positions[index] >= least * wide:
            labels[index], right = f"{values[index]:g}", positions[index]
    return labels


def _handles(looks: dict[str, dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=label, **look) for label, look in looks.items()]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
