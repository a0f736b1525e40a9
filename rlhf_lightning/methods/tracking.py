"""Means and maxima of metrics over all micro-batches and processes of a step or of a validation pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Means:
    """Sums and counts by name, so that a mean does not depend on how a step was cut into micro-batches.

    Every process must add the same names. What a name's values are empty for on one process is taken from the others.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Add numbers of any shape to a mean; each counts once."""
        values = values.detach()
        kind = torch.float32 if values.device.type == "mps" else torch.float64
        sums = torch.stack([values.sum(dtype=kind), torch.tensor(values.numel(), dtype=kind, device=values.device)])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def pop(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The means, as float32 scalars by name, after which the object is empty again.

        A name that nothing was added to on any process (the rewards of a label that the step lacks) has no mean.

        Args:
            reduce_sum: sums a tensor over the processes; called once.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        sums = reduce_sum(torch.stack([self._sums[name] for name in names]))
        self._sums = {}
        seen = sums[:, 1].tolist()
        means = (sums[:, 0] / sums[:, 1]).float().unbind()
        return {name: mean for name, mean, count in zip(names, means, seen, strict=True) if count > 0}


class Maxima:
    """Highest numbers by name, over micro-batches and processes. Every process must add the same names."""

    def __init__(self) -> None:
        self._seen: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Take numbers of any shape in; there may be none of them."""
        highest = values.max() if values.numel() else values.new_tensor(-torch.inf)
        self._seen[name] = torch.maximum(self._seen[name], highest) if name in self._seen else highest

    def pop(self, prefix: str, reduce_max: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Scalars by name, of the names that begin with ``prefix``, which are then forgotten.

        Args:
            prefix: of the names.
            reduce_max: takes the highest of a tensor over the processes; called once.
        """
        names = sorted(name for name in self._seen if name.startswith(prefix))
        if not names:
            return {}
        highest = reduce_max(torch.stack([self._seen.pop(name) for name in names]))
        return dict(zip(names, highest.unbind(), strict=True))


class ScoreStatistics:
    """Statistics of a step's or a pass's scores: mean, deviation, extremes, and their correlation with length.

    Sums and extremes are taken over all micro-batches and processes, so the numbers do not depend on how a step is cut.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._extremes: list[Tensor] = []

    def add(self, score: Tensor, length: Tensor) -> None:
        """Add scores of responses and their lengths in tokens, both ``[n]``."""
        kind = torch.float32 if score.device.type == "mps" else torch.float64
        s, n = score.detach().to(kind), length.detach().to(kind)
        terms = (torch.ones_like(s), s, n, s * s, n * n, s * n)
        self._sums.append(torch.stack([term.sum() for term in terms]))
        if len(s):
            self._extremes.append(torch.stack([s.max(), -s.min()]))

    def pop(self, reduce: Callable[[Tensor, str], Tensor]) -> dict[str, Tensor]:
        """``mean``, ``std``, ``min``, ``max`` and ``length_correlation`` (left out where one of the two is constant).

        Args:
            reduce: a tensor and ``sum`` or ``max``: the tensor reduced over the processes; called once for each.
        """
        if not self._sums:
            return {}
        count, score, length, squared, lengths, mixed = reduce(torch.stack(self._sums).sum(0), "sum").unbind()
        none = [torch.full_like(self._sums[0][:2], -torch.inf)]
        highest, lowest = reduce(torch.stack(self._extremes or none).amax(0), "max").unbind()
        self._sums, self._extremes = [], []
        if not count:
            return {}
        mean, mean_length = score / count, length / count
        spread = (squared / count - mean**2).clamp(min=0)
        out = {"mean": mean, "std": spread.sqrt(), "min": -lowest, "max": highest}
        product = spread * (lengths / count - mean_length**2).clamp(min=0)
        if product > 0:
            out["length_correlation"] = (mixed / count - mean * mean_length) / product.sqrt()
        return {name: value.float() for name, value in out.items()}
