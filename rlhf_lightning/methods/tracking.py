"""Means and maxima of metrics over all micro-batches and processes of a step or of a validation pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lightning.ops.segments import sum_dtype
from rlhf_lightning.ops.transfer import to_device


class Means:
    """Sums and counts by name, so that a mean does not depend on how a step was cut into micro-batches.

    Every process must add the same names. What a name's values are empty for on one process is taken from the others.
    Nothing is read from a device before :meth:`pop`, which waits for it once.
    """

    def __init__(self) -> None:
        self._host: dict[str, list[float]] = {}  # sum of the numbers that the host had, and count of all
        self._device: dict[str, Tensor] = {}  # sum of the numbers that a device had

    def add(self, name: str, values: Tensor | float) -> None:
        """Add numbers of any shape to a mean; each counts once."""
        host = self._host.setdefault(name, [0.0, 0.0])
        if not isinstance(values, Tensor):
            values = torch.tensor(values, dtype=torch.float64)
        host[1] += values.numel()
        total = values.detach().sum(dtype=sum_dtype(values.device))
        if total.device.type == "cpu":
            host[0] += float(total)
        else:
            self._device[name] = self._device[name] + total if name in self._device else total

    def pop(self, reduce_sum: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, Tensor]:
        """The means, as float32 scalars on the host by name, after which the object is empty again.

        A name that nothing was added to on any process (the rewards of a label that the step lacks) has no mean.

        Args:
            reduce_sum: sums a tensor over the processes; called once.
            device: of the process, where it sums.
        """
        if not self._host:
            return {}
        names = sorted(self._host)
        sums = to_device([self._host[name] for name in names], sum_dtype(device), device)
        if self._device:
            nothing = torch.zeros((), dtype=sums.dtype, device=device)
            sums[:, 0] += torch.stack([self._device.get(name, nothing) for name in names])
        self._host, self._device = {}, {}
        total, count = reduce_sum(sums).cpu().unbind(1)
        means = (total / count).float().unbind()
        return {name: mean for name, mean, number in zip(names, means, count.tolist(), strict=True) if number > 0}


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
        return dict(zip(names, highest.cpu().unbind(), strict=True))


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
        none = [torch.full_like(self._sums[0][:2], -torch.inf)]
        sums = reduce(torch.stack(self._sums).sum(0), "sum")
        extremes = reduce(torch.stack(self._extremes or none).amax(0), "max")
        count, score, length, squared, lengths, mixed, highest, lowest = torch.cat([sums, extremes]).cpu().unbind()
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
