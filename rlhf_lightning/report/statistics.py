"""Numbers of a report: pooled seeds, pooled curves, the Pareto front, histogram edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.report.reading import Curve

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pooled:
    """A metric over seeds: mean, sample standard deviation (nan for one seed), and number of seeds."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        """Format as ``0.812 ± 0.031``: as many digits as the spread leaves certain, at least three."""
        if not self.n:
            return ""
        if not math.isfinite(self.std):
            return rounded(self.mean)
        digits = decimals(self.mean, self.std)
        return f"{self.mean:.{digits}f} ± {self.std:.{digits}f}" if digits <= 6 else f"{self.mean:.2e} ± {self.std:.1e}"


def pooled(values: Sequence[float]) -> Pooled:
    """Pool the finite values: mean and sample standard deviation (denominator n - 1)."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Pooled(math.nan, math.nan, 0)
    mean = math.fsum(finite) / len(finite)
    if len(finite) == 1:
        return Pooled(mean, math.nan, 1)
    return Pooled(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / (len(finite) - 1)), len(finite))


def rounded(value: float) -> str:
    """Format with four significant digits, without an exponent for numbers of everyday size."""
    if not math.isfinite(value):
        return "nan"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def decimals(mean: float, std: float) -> int:
    """Decimal places that show two digits of the spread and at least three of the mean."""
    scales = [abs(number) for number in (mean, std) if number]
    if not scales:
        return 1
    spread = 1 - math.floor(math.log10(std)) if std else 0
    least = 2 - math.floor(math.log10(max(scales)))
    return max(0, spread, least) if std else max(1, least)


def thinned(curve: Curve, most: int) -> Curve:
    """Average a curve over at most ``most`` stretches of equal length; the last may be shorter.

    The lengths are equal because a mean of fewer points is noisier, which could be mistaken for a property of the run.
    """
    steps, values = curve
    if len(steps) <= most:
        return curve
    size = -(-len(steps) // most)
    parts = [slice(start, start + size) for start in range(0, len(steps), size)]
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


@dataclass(frozen=True)
class Band:
    """A metric over the steps, seeds pooled; every field has the shape (points,)."""

    steps: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(curves: Sequence[Curve], most: int = 120) -> Band:
    """Compute mean, smallest and largest value over seeds at every step where all seeds have a value.

    Seeds that were logged at other steps are interpolated. The band covers only the steps between the first and the
    last value of every seed, so that its mean never jumps because a seed dropped out.

    Args:
        curves: curves of the seeds, at least one; each has at least one point.
        most: maximum number of points of the result.
    """
    # A step that a resumed run logged twice counts once, with its later value.
    curves = [_unique(curve) for curve in curves]
    start, end = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    inside = grid[(grid >= start) & (grid <= end)]
    if not len(inside):  # no common step: each seed's last value
        inside = np.array([end])
    rows = np.stack([np.interp(inside, steps, values) for steps, values in curves])
    thin = [thinned((inside, row), most) for row in rows]
    stacked = np.stack([values for _, values in thin])
    return Band(thin[0][0], stacked.mean(0), stacked.min(0), stacked.max(0))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, in the order of x, of points that no other point dominates with less divergence (x) and more reward (y).

    Equal points are all on the front. Points that are not finite are never on it.
    """
    finite = [i for i, (x, y) in enumerate(points) if math.isfinite(x) and math.isfinite(y)]
    front: list[int] = []
    best = -math.inf
    for i in sorted(finite, key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best or (front and points[i] == points[front[-1]]):
            front.append(i)
            best = points[i][1]
    return front


def accuracy(chosen: NDArray[np.float32], rejected: NDArray[np.float32]) -> float:
    """Share of pairs whose chosen response has the larger reward, ties counting half, as training logs it."""
    return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean())


def edges(chosen: NDArray[np.float32], rejected: NDArray[np.float32], bins: int = 30) -> Floats:
    """Edges of bins for both histograms: the inner 98 % of all values, with a small margin.

    The caller counts values outside in the first and last bin, so that one outlier does not squeeze all others into
    one bar.
    """
    both = np.concatenate([chosen, rejected]).astype(np.float64)
    low, high = np.percentile(both, [1, 99])
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    air = 0.02 * (high - low)
    return np.linspace(low - air, high + air, bins + 1)


def _unique(curve: Curve) -> Curve:
    steps, values = curve
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(steps[1:] != steps[:-1], True)
    return steps[last], values[last]
