"""``rlhf report``: runs compared on one page, with pictures and tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from rlhf_lightning.report import Runs

#: Rows and metrics of the terminal's table; the page has all.
_ROWS, _METRICS = 20, 4

EXAMPLES = """\
examples:
  rlhf report multirun/2026-01-31_12-00-00
  rlhf report runs/train/* --output reports/today --metric val/gold/reward
  rlhf report runs/first runs/second --title "with and without LoRA"

Runs that differ in nothing but the seed are one row: mean, standard deviation and number of seeds. Reads config.yaml,
metrics.csv, result.json, samples and implicit_rewards.npz of each run; needs neither torch nor the models."""


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    made = argparse.ArgumentParser(
        prog="rlhf report",
        description="Compare runs on one HTML page that needs nothing else: leaderboard, reward against KL, curves,\n"
        "rounds of samples, implicit rewards, samples, options. PNGs and CSV files lie beside it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, folders of sweeps and chains, globs")
    made.add_argument(
        "-o", "--output", metavar="DIR", help="folder of the report; without it: report/ in the first RUNS"
    )
    made.add_argument("--metric", metavar="NAME", help="rank by this metric, for example val/reward/accuracy")
    made.add_argument("--mode", choices=("max", "min"), help="which way it is better; without it: as its name says")
    made.add_argument(
        "--top", type=_positive, default=12, metavar="N", help="groups named in the figures (default: 12)"
    )
    made.add_argument("--title", help="of the page")
    return made


def main(arguments: Sequence[str]) -> int:
    """``rlhf report RUNS... [--output DIR] [--metric NAME] [--mode max|min] [--top N] [--title TEXT]``.

    Raises:
        ReportError: no runs there, or no run logged the metric.
    """
    given = parser().parse_args(arguments)
    from rlhf_lightning.cli.console import OUT
    from rlhf_lightning.report import Runs, write_report
    from rlhf_lightning.report.chains import read_chains

    runs = Runs.read(*given.runs, metric=given.metric, mode=given.mode, families=families())
    OUT.print(table(runs))
    report = write_report(runs, folder_of(given.output, given.runs), given.title, given.top, read_chains(given.runs))
    OUT.print(f"\npage      [bold]{report.page}[/]")
    for name, files in (("pictures", report.pictures), ("tables", report.tables)):
        if files:
            OUT.print(f"{name:<9} {'  '.join(str(file) for file in files)}", markup=False)
    return 0


def families() -> dict[str, str]:
    """Method -> family, as METHODS.md has them; the colours of many methods."""
    from rlhf_lightning.cli.catalogue import catalogue

    return {entry.name: entry.family for entry in catalogue()}


def folder_of(output: str | None, runs: Sequence[str]) -> Path:
    """Where the report goes: as asked, else beside what is reported on."""
    if output is not None:
        return Path(output).expanduser()
    first = Path(runs[0]).expanduser()
    while not first.is_dir() and first != first.parent:  # a glob, or a file of a run
        first = first.parent
    return first / "report"


def table(runs: Runs) -> Table:
    """The leaderboard for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    board = runs.leaderboard()
    states = ", ".join(f"{count} {state}" for state, count in runs.states.items())
    ranked = f", ranked by {board.metric}" if board.metric else ""
    drawn = Table(
        title=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} ({states}){ranked}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    shown = board.metrics[:_METRICS]
    drawn.add_column("", overflow="fold")
    for name in shown:
        head, slash, tail = name.rpartition("/")
        drawn.add_column(f"{head}{slash}\n{tail}", justify="right")
    drawn.add_column("\nn", justify="right")
    broken = any(row.unfinished for row in board)
    if broken:
        drawn.add_column("\nnot finished")
    for row in list(board)[:_ROWS]:
        cells = [f"[bold green]{row.values[name]}[/]" if name in row.best else str(row.values[name]) for name in shown]
        ends = [str(len(row.group.done)), *([f"[red]{row.unfinished}[/]"] if broken else [])]
        drawn.add_row(escape(row.label), *cells, *ends)
    if len(board) > _ROWS:
        drawn.add_row(f"[dim]and {len(board) - _ROWS} more on the page[/]")
    return drawn


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
