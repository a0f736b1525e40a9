"""The page: one self-contained HTML file, with its pictures and tables as separate files too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.report.chains import Chain
from rlhf_lightning.report.drawing import Picture
from rlhf_lightning.report.grouping import flat, plain
from rlhf_lightning.report.leaderboard import Row, steps_of, write_runs
from rlhf_lightning.report.metrics import mode_of
from rlhf_lightning.report.runs import Runs
from rlhf_lightning.report.titles import title_of

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"
#: Maximum number of options in the page's table; ``leaderboard.csv`` has all of them.
_OPTIONS = 24
#: Maximum number of curves over swept options.
_SWEPT = 3


@dataclass(frozen=True)
class Report:
    """Files of a written report."""

    page: Path
    pictures: tuple[Path, ...]
    tables: tuple[Path, ...]


def write_report(
    runs: Runs,
    folder: str | Path = "report",
    title: str | None = None,
    named: int = 12,
    chains: Sequence[Chain] = (),
) -> Report:
    """Write ``report.html``, a PNG of each picture, ``leaderboard.csv`` and ``runs.csv``.

    Args:
        runs: runs to report on.
        folder: output folder, created if missing; files of an earlier report are replaced.
        title: title of the page; None: the number of runs.
        named: number of groups that are named in the figures.
        chains: chains whose stages the runs are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = list(pictures_of(runs, named))
    written = [picture.save(folder / f"{_slug(picture.name)}.png") for picture in pictures]
    tables = (
        runs.leaderboard().write_csv(folder / "leaderboard.csv"),
        write_runs(runs.runs, runs.groups, folder / "runs.csv"),
    )
    page = folder / PAGE
    page.write_text(render(runs, pictures, title, chains), encoding="utf-8")
    return Report(page, tuple(written), tables)


def pictures_of(runs: Runs, named: int) -> Iterator[Picture]:
    """Draw every picture that the runs have numbers for."""
    candidates = [
        runs.frontier(named=max(named, 20)),
        *(runs.over(key) for key in runs.swept()[:_SWEPT]),
        runs.curves(named=min(named, 8)),
        runs.rounds_picture(),
        runs.histograms(named),
    ]
    return (picture for picture in candidates if picture is not None)


def render(runs: Runs, pictures: list[Picture], title: str | None = None, chains: Sequence[Chain] = ()) -> str:
    """Render the page as text. The template engine escapes everything that comes from a run."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"plain": plain, "words": title_of}
    count, groups = len(runs), len(runs.groups)
    default = (
        f"{count} runs, {_counted(groups, 'configuration')}" if count > 1 else f"{runs.groups[0].label}: {runs[0].name}"
    )
    return environment.get_template("report.html.jinja").render(
        title=title or default,
        when=f"{datetime.now():%Y-%m-%d %H:%M}",
        runs=runs,
        board=runs.leaderboard(),
        rows=[_row(runs, row) for row in runs.leaderboard()],
        arrows={name: {"max": "↑", "min": "↓", None: ""}[mode_of(name)] for name in runs.leaderboard().metrics},
        figures={kind: [p for p in pictures if p.name.split(" ")[0] == kind] for kind in _KINDS},
        samples=runs.samples(),
        chains=chains,
        rounds=runs.rounds(),
        options=options_table(runs),
        listed=[_listed(runs, index) for index in range(count)],
        steps=steps_of,
        usual=any("(usual values)" in group.label for group in runs.groups),
        whole=sorted(flat(runs[0].config).items()) if groups == 1 else [],
    )


_KINDS = ("frontier", "over", "curves", "rounds", "rewards")


def options_table(runs: Runs) -> dict[str, Any]:
    """Table of the options in which the groups differ: columns in sections, one row per group.

    All options of the method share one column, since most exist in one method only.
    """
    keys = runs.differences()
    method_keys = [key for key in keys if key.startswith("method.")]
    others = [key for key in keys if not key.startswith("method.")]
    sections: dict[str, list[str]] = {}
    for key in others[:_OPTIONS]:
        section, _, rest = key.rpartition(".")
        sections.setdefault(section, []).append(rest)
    columns = [f"{section}.{rest}" if section else rest for section, inner in sections.items() for rest in inner]
    rows = []
    for group in runs.groups:
        method_options = [
            f"{_tail(key)}={plain(value)}" for key, value in group.options.items() if method_keys and _is_option(key)
        ]
        cells = [plain(group.options[key]) if key in group.options else None for key in columns]
        rows.append({"method": " ".join(method_options), "cells": cells})
    return {"sections": sections, "rows": rows, "method": bool(method_keys), "left_out": max(0, len(others) - _OPTIONS)}


def _is_option(key: str) -> bool:
    return key.startswith("method.") and not key.endswith(("_target_", "_partial_"))


def _tail(key: str) -> str:
    return key.removeprefix("method.").removeprefix("loss.")


def _row(runs: Runs, row: Row) -> dict[str, Any]:
    style = runs.looks[runs.groups.index(row.group)]
    return {"row": row, "colour": style.colour, "hue": style.hue}


def _listed(runs: Runs, index: int) -> dict[str, Any]:
    run = runs[index]
    group = next(group for group in runs.groups if run in group.runs)
    return {"run": run, "label": group.label, "rank": runs.groups.index(group)}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_")
