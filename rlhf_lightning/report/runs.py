"""A collection of runs: the functions of a report, for the page and for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.report.grouping import Group, by_numeric_key, differing, group_runs
from rlhf_lightning.report.leaderboard import Leaderboard, rank
from rlhf_lightning.report.metrics import Mode, check_logged, frontier_axes, ranking_metric, shown
from rlhf_lightning.report.palette import Style, spread, styles
from rlhf_lightning.report.reading import ReportError, Run, read_runs
from rlhf_lightning.report.rounds import RoundTable, table_of
from rlhf_lightning.report.samples import SampleTable, column_of, compare

if TYPE_CHECKING:
    from rlhf_lightning.report.drawing import Picture


class Runs(Sequence[Run]):
    """Runs, pooled over seeds and ranked.

    ::

        runs = Runs.read("multirun/2026-01-31_12-00-00")
        runs.leaderboard()      # rows with mean, standard deviation and number of seeds
        runs.frontier()         # a picture, as are curves(), histograms() and over("method.loss.beta")
        write_report(runs, "report")    # everything as a page (``report.page``)

    Args:
        runs: runs to report on.
        metric: metric to rank by; None: the runs' optimized_metric, else the first logged of ``metrics.RANKING``.
        mode: direction in which it is better; None: taken from its name.
        families: method -> family, for the colours of many methods; None: the class of the method's module.

    Raises:
        ReportError: no run logged the metric.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        metric: str | None = None,
        mode: Mode | None = None,
        families: Mapping[str, str] | None = None,
    ) -> None:
        self.runs = tuple(runs)
        optimized = {str(run.result["optimized_metric"]) for run in runs if run.result.get("optimized_metric")}
        self.metric = ranking_metric(self.logged, metric, optimized)
        self._groups = group_runs(self.runs, families)
        board = rank(self._groups, shown(self.logged, 8, self._first()), self.metric, mode)
        self.mode = board.mode
        self._board = board
        self._styles = {group.label: look for group, look in zip(self.groups, styles(self.groups), strict=True)}

    @classmethod
    def read(
        cls,
        *paths: str | Path,
        metric: str | None = None,
        mode: Mode | None = None,
        families: Mapping[str, str] | None = None,
    ) -> Runs:
        """Read run folders, sweep folders and globs.

        Raises:
            ReportError: there are no runs, or none logged the metric.
        """
        return cls(read_runs(paths), metric, mode, families)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Run:  # type: ignore[override]
        return self.runs[index]

    @cached_property
    def logged(self) -> set[str]:
        """Every metric that any run logged."""
        return {name for run in self.runs for name in run.metrics}

    @property
    def groups(self) -> list[Group]:
        """Runs pooled over seeds, best first."""
        return [row.group for row in self._board]

    @property
    def looks(self) -> list[Style]:
        """Style of each of ``groups``."""
        return [self._styles[group.label] for group in self.groups]

    @property
    def states(self) -> dict[str, int]:
        """Number of runs that are done, failed, stopped, unfinished."""
        counts: dict[str, int] = {}
        for run in self.runs:
            counts[run.state] = counts.get(run.state, 0) + 1
        return counts

    def leaderboard(self, metrics: Iterable[str] | None = None) -> Leaderboard:
        """Rank the groups, best first.

        Args:
            metrics: columns; None: the ranking metric and the most informative others.

        Raises:
            ReportError: no run logged one of them.
        """
        if metrics is None:
            return self._board
        columns = [check_logged(name, self.logged) for name in metrics]
        return rank(self._groups, columns, self.metric, self.mode)

    def frontier(
        self,
        reward: str | None = None,
        divergence: str | None = None,
        *,
        named: int = 20,
        size: tuple[float, float] | None = None,
        title: str | None = None,
    ) -> Picture | None:
        """Draw reward against KL to the reference, with the Pareto front; None if no finished run logged both.

        Args:
            reward: metric of the y axis; None: gold reward, else the best reward metric that was logged.
            divergence: metric of the x axis; None: KL to the base, else to the reference.
            named: number of groups with a label at the point.
            size: figure size in inches; None: chosen by the number of labels.
            title: title of the figure; None: names both metrics.

        Raises:
            ReportError: no run logged a requested metric.
        """
        from rlhf_lightning.report.frontier import draw_frontier, points_of

        names = frontier_axes(self._drawable(), reward, divergence)
        if names is None or not points_of(self.groups, self.looks, *names):
            return None
        return draw_frontier(self.groups, self.looks, names, named=named, size=size, title=title)

    def curves(self, metrics: Iterable[str] | None = None, *, named: int = 8, panels: int = 12) -> Picture | None:
        """Draw training curves, one panel per metric; None if nothing was logged more than once.

        Args:
            metrics: one panel each; None: the most informative ones.
            named: number of groups with a colour and a legend entry.
            panels: maximum number of panels.

        Raises:
            ReportError: no run logged one of the metrics.
        """
        from rlhf_lightning.report.curves import draw_curves

        logged = {name for run in self.runs for name in run.curves}
        several = {name for run in self.runs for name, (steps, _) in run.curves.items() if len(steps) > 1}
        chosen = [check_logged(name, logged) for name in metrics] if metrics else shown(several, panels, self._first())
        return draw_curves(self.groups, self.looks, chosen, named=named) if chosen else None

    def histograms(self, most: int = 12) -> Picture | None:
        """Draw implicit rewards of chosen and rejected responses; None if no run saved them."""
        from rlhf_lightning.report.histograms import draw_histograms

        chosen = self._spread(most)
        return draw_histograms([self.groups[i] for i in chosen], [self.looks[i] for i in chosen], most=most)

    def over(self, key: str, metrics: Iterable[str] | None = None) -> Picture | None:
        """Draw metrics over the values of one option, one line per method: ``runs.over("method.loss.beta")``.

        Args:
            key: dotted key of the option.
            metrics: one panel each; None: the ranking metric, and gold reward, accuracy and KL if logged.

        Raises:
            ReportError: no run logged one of the metrics.
        """
        from rlhf_lightning.report.sensitivity import draw_sensitivity

        usual = ("val/gold/reward", "val/gold/kl", "val/reward/accuracy", "val/kl/reference")
        default = dict.fromkeys([*self._first(), *(name for name in usual if name in self.logged)])
        chosen = [check_logged(name, self.logged) for name in metrics] if metrics else list(default)[:3]
        colours = {group.method: look.base for group, look in zip(self.groups, self.looks, strict=True)}
        by_method = all(look.hue == group.method for group, look in zip(self.groups, self.looks, strict=True))
        return draw_sensitivity(self.groups, key, chosen, colours=colours if by_method else None)

    def swept(self) -> list[str]:
        """Numeric options with three or more values for some method."""
        return by_numeric_key(self._groups)

    def samples(self, columns: int = 6, prompts: int = 8) -> SampleTable:
        """Responses of the best groups of every colour to the same prompts."""
        return compare([self.groups[index] for index in self._spread(columns)], columns=columns, prompts=prompts)

    def rounds(self, most: int = 6) -> list[RoundTable]:
        """Rounds side by side, for one run of each of the best groups that draw their own responses.

        Args:
            most: maximum number of groups.
        """
        return [table for table, _ in self._rounds(most)]

    def rounds_picture(self, most: int = 6) -> Picture | None:
        """Draw statistics of samples and steps over the rounds; None if no run draws responses.

        Args:
            most: maximum number of groups.
        """
        from rlhf_lightning.report.round_curves import draw_rounds

        tables = self._rounds(most)
        return draw_rounds([table for table, _ in tables], [look for _, look in tables]) if tables else None

    def _rounds(self, most: int) -> list[tuple[RoundTable, Style]]:
        """Tables of rounds with the styles of their groups."""
        styled_tables: list[tuple[RoundTable, Style]] = []
        for group, look in zip(self.groups, self.looks, strict=True):
            tables = (table_of(run, column_of(group, run)) for run in group.done or group.runs)
            if len(styled_tables) < most and (table := next(filter(None, tables), None)) is not None:
                styled_tables.append((table, look))
        return styled_tables

    def differences(self) -> list[str]:
        """Dotted keys in which the groups differ."""
        return differing([group.options for group in self._groups])

    def _spread(self, most: int) -> list[int]:
        """Groups to show if there is room for a few only: the best ones of every colour."""
        finished = [look for group, look in zip(self.groups, self.looks, strict=True) if group.done]
        return spread(finished or self.looks, most)

    def _first(self) -> list[str]:
        return [self.metric] if self.metric else []

    def _drawable(self) -> Collection[str]:
        return {name for run in self.runs if run.state == "done" for name in run.metrics} or self.logged


__all__ = ["ReportError", "Runs"]
