"""Means of metrics over all micro-batches and processes of a step or of a validation pass."""

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
