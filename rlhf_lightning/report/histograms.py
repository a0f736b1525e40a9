"""Implicit rewards of the chosen and the rejected responses of the last validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.report.drawing import FAINT, Picture, canvas, plain_axes
from rlhf_lightning.report.grouping import Group, shortened
from rlhf_lightning.report.palette import COLOURS, GREY, Style
from rlhf_lightning.report.statistics import accuracy, edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rewards = tuple[NDArray[np.float32], NDArray[np.float32]]


def rewards_of(group: Group) -> Rewards | None:
    """Chosen and rejected rewards of every pair of every finished seed; None if no run saved them."""
    rewards_of_runs = [run.rewards for run in group.done or group.runs]
    kept = [rewards for rewards in rewards_of_runs if rewards is not None]
    return (np.concatenate([r[0] for r in kept]), np.concatenate([r[1] for r in kept])) if kept else None


def draw_histograms(
    groups: Sequence[Group], looks: Sequence[Style], *, most: int = 12, width: float = 12.0
) -> Picture | None:
    """Draw one panel per group: rejected in grey behind chosen in the group's colour, with their means as lines.

    Methods scale implicit rewards differently (beta, sums or means), so every panel has its own axis. Values outside
    the inner 98 % are counted in the outermost bars.

    Args:
        groups: best first; the first ones that saved their rewards are drawn.
        looks: style of each group.
        most: maximum number of panels.
        width: width of the figure in inches.

    Returns:
        The picture; None if no run saved the rewards of its pairs.
    """
    kept = [(g, look, r) for g, look in zip(groups, looks, strict=True) if (r := rewards_of(g)) is not None][:most]
    if not kept:
        return None
    columns = min(4, len(kept))
    rows = math.ceil(len(kept) / columns)
    with canvas(width if columns > 1 else 6.0, 2.5 * rows + 0.35, rows, columns) as (figure, grid):
        for axes, (group, look, rewards) in zip(grid.flat, kept, strict=False):
            _panel(axes, group.label, look, rewards)
        for axes in list(grid.flat)[len(kept) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("implicit reward (nats)")
        for axes in grid[:, 0]:
            axes.set_ylabel("share of pairs")
        figure.legend(handles=_handles(), loc="outside lower center", ncols=2, fontsize=8.5)
    alt = f"implicit rewards of chosen and rejected responses: {', '.join(group.label for group, _, _ in kept)}"
    return Picture(figure, "rewards", alt)


def _handles() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(color=GREY, alpha=0.65, label="rejected"),
        Patch(color=COLOURS[0], alpha=0.6, label="chosen, in the group's colour"),
    ]


def _panel(axes: Axes, label: str, look: Style, rewards: Rewards) -> None:
    chosen, rejected = rewards
    bins = edges(chosen, rejected).tolist()
    for values, colour, alpha in ((rejected, GREY, 0.65), (chosen, look.colour, 0.6)):
        inside = np.clip(values, bins[0], bins[-1])
        weights = np.full(len(values), 1 / len(values))
        axes.hist(inside, bins=bins, weights=weights, color=colour, alpha=alpha, linewidth=0)
        axes.axvline(float(np.clip(values.mean(), bins[0], bins[-1])), color=colour, linewidth=1.6)
    plain_axes(axes, shortened(label, 30))
    right, margin = accuracy(chosen, rejected), float((chosen - rejected).mean())
    note = f"accuracy {right:.2f}\nmargin {margin:.3g}\n{len(chosen)} pairs"
    axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=FAINT)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)
