"""Statistics of rounds: one panel each, one line per run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.report.drawing import Picture, canvas, plain_axes, shared_legend, wrapped
from rlhf_lightning.report.grouping import shortened
from rlhf_lightning.report.palette import Style
from rlhf_lightning.report.rounds import Round, RoundTable, Statistic

_COLUMNS = 3


def draw_rounds(tables: Sequence[RoundTable], looks: Sequence[Style], *, width: float = 12.0) -> Picture:
    """Draw one panel per statistic over the rounds.

    Args:
        tables: tables of the runs, at least one.
        looks: style of each run.
        width: width of the figure in inches.
    """
    panels = list(dict.fromkeys(one for table in tables for one in table.statistics))
    columns = min(_COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    # Rounds of different lengths are aligned by the number of steps taken, in all panels alike.
    by_step = len({table.count for table in tables}) > 1
    last = max(1, *(_position(one, by_step) for table in tables for one in table.rounds))
    legend = 0.35 if len(tables) > 1 else 0.0
    with canvas(width, 2.2 * rows + legend + 0.2, rows, columns) as (figure, grid):
        for axes, statistic in zip(grid.flat, panels, strict=False):
            plain_axes(axes, wrapped(statistic.label))
            _panel(axes, statistic, tables, looks, by_step=by_step)
            axes.set_xlim(-0.03 * last, 1.03 * last)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("steps before the round" if by_step else "round")
        if len(tables) > 1:
            handles = [_line([], [], look, shortened(table.label)) for table, look in zip(tables, looks, strict=True)]
            shared_legend(figure, handles)
    labels = ", ".join(table.label for table in tables)
    return Picture(figure, "rounds", f"{', '.join(one.label for one in panels)} over the rounds of {labels}")


def _position(one: Round, by_step: bool) -> int:
    return one.step if by_step else one.number


def _panel(
    axes: Any, statistic: Statistic, tables: Sequence[RoundTable], looks: Sequence[Style], *, by_step: bool
) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for table, look in zip(tables, looks, strict=True):
        with_number = [one for one in table.rounds if statistic.name in one.numbers]
        numbers = [one.numbers[statistic.name] for one in with_number]
        axes.add_line(_line([_position(one, by_step) for one in with_number], numbers, look, table.label))
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if statistic.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if axes.get_ylim()[0] < 0:  # around a line of zeros
            axes.set_ylim(bottom=0.0)


def _line(x: Sequence[float], y: Sequence[float], look: Style, label: str) -> Any:
    from matplotlib.lines import Line2D

    dashes: dict[str, Any] = {"dashes": look.dash} if look.dash else {}
    marker = look.marker if len(x) <= 12 else None
    return Line2D(x, y, color=look.colour, linewidth=1.6, marker=marker, markersize=4, label=label, **dashes)
