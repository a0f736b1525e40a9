"""Changes made by a run: the metrics that matter, at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rlhf_lightning.report.metrics import DIVERGENCES, REWARDS, SHOWN, mode_of
from rlhf_lightning.report.reading import Curve, Run
from rlhf_lightning.report.statistics import rounded

_MOST = 10
#: Metrics that describe how a run was trained, not its outcome.
_MEANS = frozenset({"train/grad_norm"})
#: Metrics of single steps are averaged over this share of them at either end, of at least ``_LEAST`` steps.
_SHARE, _LEAST = 0.1, 3
#: Besides ``metrics.SHOWN``: how long responses are, and whether they end.
_RESPONSES = ("val/sample/length", "val/sample/finished")


class Point(NamedTuple):
    """A value and the step at which it was measured (the last step of an average)."""

    step: int
    value: float


@dataclass(frozen=True)
class Change:
    """A metric at the beginning and at the end of a run.

    Attributes:
        metric: its name.
        first, last: values with their steps; the steps are equal if the metric was measured once.
        averaged: each value is the mean of several training steps, whose single values are noisy.
    """

    metric: str
    first: Point
    last: Point
    averaged: bool

    @property
    def difference(self) -> float:
        """Last minus first."""
        return self.last.value - self.first.value

    @property
    def better(self) -> bool | None:
        """True if the metric improved; None if nothing changed or its name does not tell which direction is better."""
        mode = mode_of(self.metric)
        return None if mode is None or not self.difference else (self.difference > 0) == (mode == "max")

    def cells(self) -> tuple[str, str, str, str]:
        """Name, first, last and difference, as a table shows them."""
        if self.first.step == self.last.step:
            return self.metric, "", rounded(self.last.value), ""
        sign = "+" if self.difference > 0 else ""
        name = self.metric + ("*" if self.averaged else "")
        return name, rounded(self.first.value), rounded(self.last.value), sign + rounded(self.difference)


def changes_of(run: Run, first: Iterable[str] = (), *, everything: bool = False) -> list[Change]:
    """Select the metrics worth a row, with their values at the beginning and at the end.

    If both validation and training steps log a metric, the validation value is shown, unless there was only one
    validation: training steps measure the same with more noise.

    Args:
        run: the run; one without curves has no changes.
        first: metrics that come before all others, such as the optimised one.
        everything: return every logged metric, not only the most important ones.
    """
    curves = run.curves
    if everything:
        return [
            _change(name, curves[name]) for name in dict.fromkeys([*first, *SHOWN, *sorted(curves)]) if name in curves
        ]
    repeated = {f"train/{name.removeprefix('val/')}" for name, (steps, _) in curves.items() if len(steps) > 1}
    ordered = dict.fromkeys([*first, *REWARDS, *DIVERGENCES, *_RESPONSES, *SHOWN])
    names = [name for name in ordered if name in curves and name not in repeated | _MEANS]
    return [_change(name, curves[name]) for name in names[:_MOST]]


def _change(name: str, curve: Curve) -> Change:
    steps, values = curve
    count = max(_LEAST, round(len(steps) * _SHARE)) if name.startswith("train/") else 1
    if count == 1 or len(steps) < 2 * count:
        return Change(name, Point(int(steps[0]), float(values[0])), Point(int(steps[-1]), float(values[-1])), False)
    begin = Point(int(steps[count - 1]), float(values[:count].mean()))
    return Change(name, begin, Point(int(steps[-1]), float(values[-count:].mean())), True)
