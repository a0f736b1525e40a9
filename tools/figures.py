"""Pictures of the site that no report draws: python tools/figures.py NAME [RUN_OR_SWEEP ...] writes docs/.../NAME.png.

``compare`` is drawn from the table of docs/compare_offline.md, ``advantages`` from the credit functions on five tokens
with values that were made up; ``both_fall``, ``inner_epochs``, ``critics`` and ``kl_columns`` from ``metrics.csv`` of
the runs named: of ``kl_columns`` the first is offline, the second on-policy.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlhf_lightning.report.drawing import FAINT, INK, PAPER, Picture, canvas, plain_axes  # noqa: E402
from rlhf_lightning.report.palette import COLOURS  # noqa: E402
from rlhf_lightning.report.placement import Box, place_labels  # noqa: E402
from rlhf_lightning.report.statistics import pareto_front  # noqa: E402

#: Of the table's column, in the order of the legend; each has a colour and a marker.
DATA = {"pairs": "o", "labelled responses": "s", "ranked lists": "^", "demonstrations": "D", "other": "X"}
#: Where most methods lie, enlarged: KL and gold reward.
CROWD = ((0.93, 1.95), (2.66, 3.10))


def table() -> list[tuple[str, str, float, float, float]]:
    """Method, data, gold reward, KL and its deviation over seeds, as the page has them."""
    number = r"([\d.]+) ± ([\d.]+)"
    row = re.compile(rf"^\| `(\w+)`(?: †)? \| ([\w ]+?) \| {number} \| {number} \|", re.MULTILINE)
    page = (ROOT / "docs" / "compare_offline.md").read_text(encoding="utf-8")
    return [
        (name, data if data in DATA else "other", float(gold), float(kl), float(spread))
        for name, data, gold, _, kl, spread in row.findall(page)
    ]


def compare() -> Picture:
    """Every offline method, and beside it the crowd, where each has its name."""
    rows = table()
    front = {rows[at][0] for at in pareto_front([(row[3], row[2]) for row in rows])}
    with canvas(7.6, 8.4, 2, 1) as (figure, grid):
        whole, close = grid[:, 0]
        plain_axes(whole, "All methods", "KL to the base, nats a response", "gold reward, points")
        plain_axes(close, "The frame, enlarged", "KL to the base, nats a response", "gold reward, points")
        for axes, inside in ((whole, False), (close, True)):
            _dots(axes, [row for row in rows if not inside or _in_crowd(row)])
        whole.set(xlim=(-0.15, 5.4), ylim=(0.4, 3.4))
        whole.scatter([0], [0.56], s=40, color=PAPER, edgecolors=FAINT, zorder=5)
        (left, right), (low, high) = CROWD
        whole.add_patch(_rectangle(left, low, right - left, high - low))
        close.set(xlim=(left, right), ylim=(low, high))
        whole.legend(loc="lower right", fontsize=8.5, title="learns from", title_fontsize=8.5)
        figure.canvas.draw()
        outside = [row for row in rows if not _in_crowd(row)]
        _names(whole, [*outside, ("before training", "", 0.56, 0.0, 0.0)], front, rows)
        _names(close, [row for row in rows if _in_crowd(row)], front, rows)
    return Picture(figure, "compare_offline", "gold reward against KL to the base of every offline method")


def _in_crowd(row: Sequence[Any]) -> bool:
    (left, right), (low, high) = CROWD
    return bool(left < row[3] < right and low < row[2] < high)


def _rectangle(x: float, y: float, width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, fill=False, edgecolor=FAINT, linestyle=(0, (3, 2)), linewidth=1)


def _dots(axes: Any, rows: Sequence[Any]) -> None:
    for colour, (data, marker) in zip(COLOURS, DATA.items(), strict=False):
        members = [row for row in rows if row[1] == data]
        axes.scatter(
            [row[3] for row in members], [row[2] for row in members], s=44, color=colour, marker=marker,
            edgecolors=PAPER, linewidths=0.6, zorder=4, label=data,
        )  # fmt: skip


def _names(axes: Any, rows: Sequence[Any], front: set[str], others: Sequence[Any]) -> None:
    figure = axes.get_figure()
    renderer, scale = figure.canvas.get_renderer(), figure.dpi / 100
    ordered = sorted(rows, key=lambda row: (row[0] not in front, -row[2]))
    texts = [
        axes.text(0, 0, row[0], fontsize=8, color=INK if row[1] else FAINT, zorder=6, weight=_weight(row[0], front))
        for row in ordered
    ]
    sizes = [(box.width + 2, box.height) for box in (text.get_window_extent(renderer) for text in texts)]
    pixels = [tuple(map(float, axes.transData.transform((row[3], row[2])))) for row in ordered]
    dots = [axes.transData.transform((row[3], row[2])) for row in others]
    obstacles = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in dots if (x, y) not in pixels]
    window = axes.get_window_extent(renderer)
    area = Box(window.x0, window.y0, window.x1, window.y1)
    label_boxes = place_labels(pixels, sizes, area, obstacles=obstacles, gap=6 * scale, reach=90 * scale)
    back = axes.transData.inverted()
    for text, pixel, box in zip(texts, pixels, label_boxes, strict=True):
        if box is None:
            raise ValueError(f"no room for the name {text.get_text()}")
        middle = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
        text.set(position=back.transform(middle), ha="center", va="center")
        end = (min(max(pixel[0], box.left), box.right), min(max(pixel[1], box.bottom), box.top))
        if math.dist(pixel, end) < 10 * scale:
            continue
        line = back.transform([pixel, end])
        axes.plot(line[:, 0], line[:, 1], color=FAINT, linewidth=0.5, zorder=3, scalex=False, scaley=False)


def _weight(name: str, front: set[str]) -> str:
    return "bold" if name in front else "normal"


def advantages() -> Picture:
    """Credit of each token of one response: GRPO, rewards at steps, and a critic's opinion."""
    import torch

    from rlhf_lightning import credit
    from rlhf_lightning.types import Ragged

    tokens = ["the", "fox", "is", "blue", "."]
    value = torch.tensor([1.2, 1.2, 1.2, 1.3, -0.9])  # what a critic may expect before each token is written
    reward = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0])
    one = torch.zeros(5, dtype=torch.long)
    group = credit.grpo(torch.tensor([-1.0, 3.0, 4.0, 2.5]), torch.zeros(4, dtype=torch.long))
    panels = {"GRPO": [float(group[0])] * 5}
    for lam in (0.0, 0.95):
        given = credit.gae(Ragged(reward, one, 1), Ragged(value, one, 1), lam=lam)["advantage"]
        panels[f"PPO, λ = {lam:g}"] = given.token.tolist()
    with canvas(8.2, 2.8, 1, 3, sharey=True) as (figure, grid):
        for axes, (title, bars) in zip(grid[0], panels.items(), strict=True):
            plain_axes(axes, title)
            axes.bar(tokens, bars, color=[COLOURS[0] if bar > 0 else COLOURS[1] for bar in bars], width=0.65)
            axes.axhline(0, color=FAINT, linewidth=0.8)
        grid[0, 0].set_ylabel("advantage")
    return Picture(figure, "advantages", "advantages of five tokens under GRPO and under PPO with a critic")


def rows_of(run: Path) -> list[dict[str, float]]:
    """``metrics.csv`` of a run, numbers alone."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]


def method_of(run: Path) -> str:
    """Name of a run of a sweep by its configuration."""
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    critic = config["method"].get("critic")
    if critic:
        return critic["kind"] + (", detached" if critic["detach"] else "")
    return str(config["method"]["loss"]["_target_"]).rpartition(".")[2]


def runs_in(folders: Sequence[str]) -> list[Path]:
    """Folders with metrics in or below the ones named."""
    return sorted(path.parent for folder in folders for path in Path(folder).rglob("metrics.csv"))


def smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Means of the last few values."""
    return [sum(values[max(0, at + 1 - width) : at + 1]) / min(width, at + 1) for at in range(len(values))]


def both_fall(*folders: str) -> Picture:
    """Log-ratios of both sides of the pairs under each method."""
    runs = runs_in(folders)
    with canvas(7.4, 3.1, 1, len(runs), sharey=True) as (figure, grid):
        for axes, run in zip(grid[0], runs, strict=True):
            plain_axes(axes, method_of(run), "step")
            for side, colour in (("chosen", COLOURS[0]), ("rejected", COLOURS[1])):
                points = [
                    (row["step"], row[f"train/log_ratio/{side}"])
                    for row in rows_of(run)
                    if f"train/log_ratio/{side}" in row
                ]
                steps, ratios = zip(*points, strict=True)
                axes.plot(steps, smooth(ratios), color=colour, label=side)
            axes.axhline(0, color=FAINT, linewidth=0.8)
        grid[0, 0].set_ylabel("log-ratio, nats a response")
        grid[0, 0].legend(loc="lower left")
    return Picture(figure, "both_fall", "log-ratios of chosen and rejected responses over the steps")


def inner_epochs(*folders: str) -> Picture:
    """Distance of the policy from its samples, by the pass over a rollout; means over rollouts."""
    (run,) = runs_in(folders)
    rows = [row for row in rows_of(run) if "train/ratio/max" in row]
    begins = [at for at, row in enumerate(rows) if "train/reward/mean" in row]  # logged as a rollout is drawn
    passes = begins[1] - begins[0]
    by_pass = [[rows[at + number] for at in begins if at + number < len(rows)] for number in range(passes)]
    shown = {
        "largest ratio of a token": "train/ratio/max",
        "share of tokens clipped": "train/clip/",
        "approximate KL, nats": "train/approx_kl",
    }
    with canvas(8.2, 2.8, 1, 3) as (figure, grid):
        for axes, (title, name) in zip(grid[0], shown.items(), strict=True):
            plain_axes(axes, title, "pass over the rollout")
            means = [
                sum(sum(value for key, value in row.items() if key.startswith(name)) for row in part) / len(part)
                for part in by_pass
            ]
            axes.bar(range(1, passes + 1), means, color=COLOURS[0], width=0.7)
            axes.set_xticks(range(1, passes + 1))
        grid[0, 0].axhline(1, color=FAINT, linewidth=0.8)
    return Picture(figure, "inner_epochs", "ratio, clipped tokens and KL by the pass over a rollout")


def critics(*folders: str) -> Picture:
    """Explained variance and gold reward of each kind of critic; a thin line a seed, a thick one their mean."""
    by_kind: dict[str, list[list[dict[str, float]]]] = {}
    for run in runs_in(folders):
        by_kind.setdefault(method_of(run), []).append(rows_of(run))
    shown = {
        "explained variance of returns": "train/value/explained_variance",
        "gold reward, points": "val/gold/reward",
    }
    with canvas(7.4, 3.0, 1, 2) as (figure, grid):
        for axes, (title, name) in zip(grid[0], shown.items(), strict=True):
            plain_axes(axes, title, "step")
            for colour, (kind, runs) in zip(COLOURS, sorted(by_kind.items()), strict=False):
                lines = [[(row["step"], row[name]) for row in rows if name in row] for rows in runs]
                steps = [step for step, _ in lines[0]]
                values = [smooth([value for _, value in line], 5 if len(steps) > 20 else 1) for line in lines]
                for line in values:
                    axes.plot(steps, line, color=colour, linewidth=0.7, alpha=0.4)
                mean = [sum(column) / len(column) for column in zip(*values, strict=True)]
                axes.plot(steps, mean, color=colour, linewidth=2, label=kind)
        grid[0, 0].set_ylim(-0.3, 0.3)
        grid[0, 0].legend(loc="upper left")
    return Picture(figure, "critics", "explained variance and gold reward of a separate and a shared critic")


def kl_columns(offline: str, on_policy: str) -> Picture:
    """The columns that speak of KL, in a run on pairs and in one that draws its own responses."""
    panels = {
        "DPO, on pairs": (offline, {"val/gold/kl": 0, "train/log_ratio/chosen": 2, "train/log_ratio/mean": 4}),
        "PPO, on its own samples": (on_policy, {"val/gold/kl": 0, "val/kl/reference": 1, "train/kl/reference": 3}),
    }
    with canvas(8.2, 3.6, 1, 2) as (figure, grid):
        for axes, (title, (run, columns)) in zip(grid[0], panels.items(), strict=True):
            plain_axes(axes, title, "optimiser step")
            rows = rows_of(Path(run))
            for name, colour in columns.items():
                steps, values = zip(*((row["step"], row[name]) for row in rows if name in row), strict=True)
                several = name.startswith("train/")
                axes.plot(
                    steps, smooth(values) if several else values, color=COLOURS[colour], linewidth=1.8, label=name,
                    marker=None if several else "o", markersize=4,
                )  # fmt: skip
            axes.axhline(0, color=FAINT, linewidth=0.8)
            axes.legend(loc="lower left" if title.startswith("DPO") else "lower right", fontsize=8.5)
        grid[0, 0].set_ylabel("nats a response")
    return Picture(figure, "kl_columns", "KL on samples rises, and the log-ratio of the data's responses falls below 0")


PICTURES: dict[str, tuple[Callable[..., Picture], str]] = {
    "compare": (compare, "compare_offline.png"),
    "advantages": (advantages, "learn/advantages.png"),
    "both_fall": (both_fall, "learn/both_fall.png"),
    "inner_epochs": (inner_epochs, "learn/inner_epochs.png"),
    "critics": (critics, "learn/critics.png"),
    "kl_columns": (kl_columns, "learn/kl_columns.png"),
}

if __name__ == "__main__":
    draw, path = PICTURES[sys.argv[1]]
    draw(*sys.argv[2:]).save(ROOT / "docs" / path)
