"""Reward against divergence from the reference: the cost in KL of each method's gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rlhf_lightning.report.drawing import FAINT, INK, PAPER, Picture, canvas, plain_axes
from rlhf_lightning.report.grouping import Group, shortened
from rlhf_lightning.report.metrics import MOST_DIVERGENCE
from rlhf_lightning.report.palette import Style
from rlhf_lightning.report.placement import Box, place_labels
from rlhf_lightning.report.stages import family_of
from rlhf_lightning.report.statistics import band, pareto_front, pooled
from rlhf_lightning.report.titles import title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Maximum number of points that are drawn with their path through training; more paths would hide the points.
_PATHS = 12
_SIZE = 8.5  #: font size of the names
_SMALL, _LARGE = (9.6, 5.6), (11.5, 7.0)  #: figure size in inches, for few and for many names


@dataclass(frozen=True)
class Point:
    """A group as a point: the mean over its seeds, and every seed."""

    rank: int  #: rank of the group, from 0
    group: Group
    style: Style
    x: float
    y: float
    seeds: tuple[tuple[float, float], ...]
    bound: bool = False  #: x is an upper bound


def points_of(groups: Sequence[Group], looks: Sequence[Style], x: str, y: str) -> list[Point]:
    """Points of the groups with at least one finished run that has both metrics."""
    points = []
    for index, (group, style) in enumerate(zip(groups, looks, strict=True)):
        seeds = tuple((run.metrics[x], run.metrics[y]) for run in group.done if {x, y} <= run.metrics.keys())
        most = [run.metrics for run in group.done if {MOST_DIVERGENCE, y} <= run.metrics.keys()]
        bounds = tuple((metrics[MOST_DIVERGENCE], metrics[y]) for metrics in most)
        if seeds or bounds:
            across, up = (pooled([seed[axis] for seed in seeds or bounds]).mean for axis in (0, 1))
            points.append(Point(index, group, style, across, up, seeds or bounds, bound=not seeds))
    return points


def draw_frontier(
    groups: Sequence[Group],
    looks: Sequence[Style],
    axes_names: tuple[str, str],
    *,
    named: int = 20,
    size: tuple[float, float] | None = None,
    title: str | None = None,
) -> Picture:
    """Draw final reward over final divergence, one point per group, with the Pareto front.

    A hollow point marks an upper bound of the divergence, as for the best of several responses. Stages of a chain
    whose names end in different numbers are joined. Small dots are seeds; with few groups, a thin line shows a group's
    path through training. The divergence axis has a square-root scale if its values span a decade or more, since KL
    grows with the square of the distance that a policy has moved ("Scaling Laws for Reward Model Overoptimization",
    arXiv:2210.10760).

    Args:
        groups: groups to draw, best first.
        looks: style of each group.
        axes_names: metrics of the x axis (divergence) and the y axis (reward).
        named: number of groups that are labelled, in addition to those on the front.
        size: figure size in inches; None: chosen by the number of labels.
        title: title of the figure; None: names both metrics.
    """
    x, y = axes_names
    points = points_of(groups, looks, x, y)
    base = base_of(points, x, y)
    # The untrained policy is a point too: a method with less reward is not on the front.
    positions = [*((point.x, point.y) for point in points), *([base] if base else [])]
    best = pareto_front(positions)
    front, corners = [i for i in best if i < len(points)], [positions[i] for i in best]
    several = named if len(points) <= 2 * named else named // 2  # a crowd hides labels anyway
    chosen = list(dict.fromkeys([*front, *range(min(several, len(points)))]))
    with canvas(*(size or (_SMALL if len(chosen) <= 25 else _LARGE))) as (figure, grid):
        axes = grid[0, 0]
        means = ", mean over seeds" if any(len(point.seeds) > 1 for point in points) else ""
        across, up = (title_of(name, unit=False) for name in axes_names)
        plain_axes(axes, title or f"{up} against {across}", f"{across} (nats, final{means})", title_of(y))
        rooted = _root_scale(axes, [seed[0] for point in points for seed in point.seeds])
        paths = _paths(axes, points, x, y) if len(points) <= _PATHS else []
        _front(axes, corners)
        _families(axes, points)
        _scatter(axes, points, front)
        if base is not None:
            axes.scatter(*base, s=46, color=PAPER, edgecolors=FAINT, linewidths=1.4, zorder=6)
        _room(axes, points, rooted)
        _hue_legend(axes, points, line=len(corners) > 1)
        figure.canvas.draw()
        _labels(axes, points, chosen, set(front), base, corners, paths)
    alt = f"{up} against {across}; on the front: {', '.join(points[i].group.label for i in front) or 'nothing'}"
    return Picture(figure, "frontier", alt)


def _root_scale(axes: Axes, values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    if not positive or max(values) < 10 * max(min(positive), max(values) / 1000) or min(values) < -0.05 * max(values):
        return False
    import numpy as np

    axes.set_xscale("function", functions=(lambda v: np.sign(v) * np.sqrt(np.abs(v)), lambda v: np.sign(v) * v**2))
    axes.set_xlabel(f"{axes.get_xlabel()[:-1]}; square-root scale)")
    ticks = [0.0]
    for tick in (10.0**power * digit for power in range(-3, 6) for digit in (1, 2, 3, 5, 7)):
        if math.sqrt(tick) - math.sqrt(ticks[-1]) > 0.1 * math.sqrt(max(values)) and tick < 1.1 * max(values):
            ticks.append(tick)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter("{x:g}")
    return True


def _paths(axes: Axes, points: Sequence[Point], x: str, y: str) -> list[tuple[float, float]]:
    """Draw the paths; return points along them that labels should not cover."""
    along: list[tuple[float, float]] = []
    for point in points:
        runs = [run for run in point.group.done if {x, y} <= run.curves.keys()]
        if not runs:
            continue
        across, up = band([run.curves[x] for run in runs]), band([run.curves[y] for run in runs])
        if list(across.steps) == list(up.steps) and len(up.steps) > 1:
            axes.plot(across.mean, up.mean, color=point.style.colour, linewidth=1, alpha=0.45, zorder=2)
            corners = list(zip(across.mean.tolist(), up.mean.tolist(), strict=True))
            for (x0, y0), (x1, y1) in pairwise(corners):
                along += [(x0 + (x1 - x0) * part / 30, y0 + (y1 - y0) * part / 30) for part in range(30)]
    return along


def base_of(points: Sequence[Point], x: str, y: str) -> tuple[float, float] | None:
    """The untrained policy: values logged at step 0 with a divergence close to 0; None if there are none."""
    starts = []
    far = max((point.x for point in points), default=0.0)
    for run in (run for point in points for run in point.group.done):
        if {x, y} <= run.curves.keys():
            (steps, divergence), (rewarded, reward) = run.curves[x], run.curves[y]
            if steps[0] == rewarded[0] == 0 and abs(divergence[0]) <= 0.01 * far:
                starts.append((float(divergence[0]), float(reward[0])))
    if not starts:
        return None
    across, up = (pooled(values).mean for values in zip(*starts, strict=True))
    return across, up


def _front(axes: Axes, corners: Sequence[tuple[float, float]]) -> None:
    if len(corners) > 1:
        axes.step(
            [corner[0] for corner in corners], [corner[1] for corner in corners], where="post",
            color=INK, linewidth=1.1, linestyle=(0, (4, 2)), alpha=0.7, zorder=3,
        )  # fmt: skip


def _families(axes: Axes, points: Sequence[Point]) -> None:
    """Draw a line through stages of a chain whose names differ only in a number, such as a sweep over a strength.

    No line is drawn if stages of one name have several settings.
    """
    families: dict[str, list[Point]] = {}
    for point in points:
        stage = point.group.runs[0].stage
        if stage != family_of(stage):
            families.setdefault(family_of(stage), []).append(point)
    for family in families.values():
        if len({point.group.runs[0].stage for point in family}) < len(family):
            continue
        ordered = sorted(family, key=lambda point: int(point.group.runs[0].stage.rpartition("_")[2]))
        line = [point.x for point in ordered], [point.y for point in ordered]
        axes.plot(*line, color=ordered[0].style.base, linewidth=1, alpha=0.6, zorder=2)


def _scatter(axes: Axes, points: Sequence[Point], front: Sequence[int]) -> None:
    for index, point in enumerate(points):
        if len(point.seeds) > 1:
            across, up = zip(*point.seeds, strict=True)
            axes.scatter(across, up, s=9, color=point.style.colour, alpha=0.45, linewidths=0, zorder=4)
            if len(points) <= _PATHS:
                for seed in point.seeds:
                    ends = ([point.x, seed[0]], [point.y, seed[1]])
                    axes.plot(*ends, color=point.style.colour, linewidth=0.7, alpha=0.3, zorder=2)
        edge = point.style.colour if point.bound else INK if index in front else PAPER
        drawn = axes.scatter(
            [point.x], [point.y], s=62, color=PAPER if point.bound else point.style.colour, marker=point.style.marker,
            zorder=5, edgecolors=edge, linewidths=1.4 if point.bound else 1.2 if index in front else 0.8,
        )  # fmt: skip
        drawn.set_gid(f"group-{point.rank}")


def _room(axes: Axes, points: Sequence[Point], rooted: bool) -> None:
    """Add margins for labels at the edges."""
    axes.margins(x=0.12, y=0.12)
    axes.autoscale_view()
    low = min((seed[0] for point in points for seed in point.seeds), default=0.0)
    if low >= 0:
        axes.set_xlim(left=0 if rooted else max(axes.get_xlim()[0], -0.03 * axes.get_xlim()[1]))


def _hue_legend(axes: Axes, points: Sequence[Point], *, line: bool) -> None:
    """Add a legend of the colours, if a colour is shared by several groups."""
    from matplotlib.lines import Line2D

    hues: dict[str, Style] = {}
    for point in points:
        hues.setdefault(point.style.hue, point.style)
    many = len({look.base for look in hues.values()}) < len(hues)
    handles: list[Any] = [
        Line2D([], [], color=look.base, marker=look.marker if many else "o", linestyle="none", markersize=7, label=hue)
        for hue, look in hues.items()
    ]
    front = [Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (4, 2)), label="Pareto front")] if line else []
    if len(hues) == len(points):  # every point has its own colour and label
        axes.legend(handles=front, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8.5)
        return
    columns = 1 if len(handles) < 24 else 2
    axes.legend(handles=[*handles, *front], loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns, fontsize=8.5)


def _labels(
    axes: Axes,
    points: Sequence[Point],
    chosen: Sequence[int],
    front: set[int],
    base: tuple[float, float] | None,
    corners: Sequence[tuple[float, float]],
    paths: Sequence[tuple[float, float]],
) -> None:
    """Write labels next to their points without overlaps, with a thin line to those that are further away."""
    figure: Any = axes.get_figure()
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 100
    named = [(points[i].x, points[i].y, shortened(points[i].group.label, 34), INK, i in front) for i in chosen]
    named += [(*base, "before training", FAINT, False)] if base else []
    texts = [
        axes.text(0, 0, text, fontsize=_SIZE, color=colour, weight="bold" if bold else "normal", zorder=7)
        for *_, text, colour, bold in named
    ]
    extents = [text.get_window_extent(renderer) for text in texts]
    pixels = [_pixel(axes, x, y) for x, y, *_ in named]
    others = [_marker_box(_pixel(axes, point.x, point.y)) for i, point in enumerate(points) if i not in chosen]
    others += _segments([_pixel(axes, *corner) for corner in corners])
    if len(points) <= _PATHS:
        others += [_marker_box(_pixel(axes, *seed), 2.5) for point in points for seed in point.seeds]
        others += [_marker_box(_pixel(axes, *corner), 1.0) for corner in paths]
    window = axes.get_window_extent(renderer)
    area = Box(window.x0, window.y0, window.x1 + 2, window.y1 + 2)
    sizes = [(extent.width + 2, extent.height + 1) for extent in extents]
    label_boxes = place_labels(pixels, sizes, area, obstacles=others, gap=7 * scale, reach=95 * scale)
    back = axes.transData.inverted()
    for text, pixel, box in zip(texts, pixels, label_boxes, strict=True):
        if box is None:
            text.remove()
            continue
        centre = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
        text.set(position=back.transform(centre), horizontalalignment="center", verticalalignment="center")
        _leader(axes, back, pixel, box, 16 * scale)


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _leader(axes: Axes, back: Any, pixel: Sequence[float], box: Box, far: float) -> None:
    end = (min(max(pixel[0], box.left), box.right), min(max(pixel[1], box.bottom), box.top))
    if math.dist(pixel, end) > far:
        (x0, y0), (x1, y1) = back.transform(pixel), back.transform(end)
        axes.plot([x0, x1], [y0, y1], color=FAINT, linewidth=0.6, zorder=4, scalex=False, scaley=False)


def _segments(corners: Sequence[Sequence[float]], half: float = 1.5) -> list[Box]:
    """Rectangles along the steps of the front that no label may cover."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        boxes.append(Box(x0, y0 - half, x1, y0 + half))
        boxes.append(Box(x1 - half, min(y0, y1), x1 + half, max(y0, y1)))
    return boxes


def _marker_box(pixel: Sequence[float], half: float = 5.0) -> Box:
    return Box(pixel[0] - half, pixel[1] - half, pixel[0] + half, pixel[1] + half)
