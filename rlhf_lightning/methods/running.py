"""Running mean and standard deviation of a scalar, which losses such as alpha-DPO and BCO keep between steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.types import Moments


class RunningMoments(nn.Module):
    r"""Mean and standard deviation of everything observed so far, equal on every process, kept in the checkpoint.

    A step's observations are one weighted sample that is merged into the state, with :math:`a` the weight of the past
    and :math:`b` that of the step:

    .. math::
        \mu' = \frac{a\mu + b\hat\mu}{a + b}

    Cumulative moments weigh by counts, :math:`a = N,\ b = n`, and their standard deviation is that of all numbers:

    .. math::
        v' = \frac{a v + b\hat v}{a + b} + \frac{ab}{(a + b)^2}(\mu - \hat\mu)^2

    An exponential moving average has :math:`a = d\,A,\ b = 1 - d`, where :math:`A` is the weight of the past before it
    decayed. Its standard deviation is the average of the steps' own (unbiased) ones, as alpha-DPO's authors have it:
    how far numbers of one step lie apart, whatever their mean does from step to step. As the weights are normalised,
    the averages are unbiased from the first step on; published ones start at zero and are :math:`1 - d^k` times these
    after k steps.

    Args:
        decay: of the past, per optimiser step, in (0, 1); alpha-DPO uses 0.9. None: cumulative moments, as the
            running delta of BCO.

    Raises:
        ValueError: ``decay`` is outside (0, 1).
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    count: Tensor

    def __init__(self, decay: float | None = None) -> None:
        super().__init__()
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"running_decay={decay} must lie in (0, 1); null keeps cumulative moments")
        self.decay = decay
        for name in ("mean", "variance", "weight", "count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    def moments(self) -> Moments:
        """The state before the current step. A count of 0: nothing was observed yet."""
        return Moments(mean=self.mean.clone(), std=self.variance.sqrt(), count=self.count.clone())

    @torch.no_grad()
    def update(self, observed: Float[Tensor, " observed"]) -> None:
        """Fold in what this process observed in one optimiser step; a collective call.

        Args:
            observed: numbers of all micro-batches of the step on this process; it may be empty.
        """
        self._merge(*_pooled(observed.detach().to(self.mean)))

    @torch.no_grad()
    def observe(self, observed: Float[Tensor, " observed"]) -> None:
        """Fold in numbers that every process has alike, such as the rewards of a whole rollout; no communication.

        Args:
            observed: the same on every process; it may be empty.
        """
        numbers = observed.detach().to(self.mean)
        mean = numbers.mean() if len(numbers) else numbers.new_zeros(())
        variance = (numbers - mean).square().mean() if len(numbers) else numbers.new_zeros(())
        self._merge(numbers.new_tensor(float(len(numbers))), mean, variance)

    def _merge(self, number: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Fold in a sample with its count, mean and population variance."""
        if number == 0:
            return
        past, new = (self.count, number) if self.decay is None else (self.decay * self.weight, 1 - self.decay)
        total = past + new
        shift = mean - self.mean
        if self.decay is None:
            self.variance.copy_((past * self.variance + new * variance) / total + past * new / total**2 * shift**2)
        else:
            deviation = (variance * number / (number - 1).clamp(min=1)).sqrt()
            self.variance.copy_(((past * self.variance.sqrt() + new * deviation) / total).square())
        self.mean.add_(shift * new / total)
        self.weight.copy_(total)
        self.count.add_(number)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningMoments:
        """Follow the module to another device, never to another dtype: half precision cannot count."""
        exact = {name: buffer.clone() for name, buffer in self.named_buffers()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


def _pooled(observed: Float[Tensor, " observed"]) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and population variance over the observations of all processes."""
    number = observed.new_tensor(float(len(observed)))
    mean = observed.mean() if len(observed) else observed.new_zeros(())
    rows = _all_gather(torch.stack([number, mean, ((observed - mean) ** 2).sum()]))
    numbers, means, squares = rows.unbind(1)
    total = numbers.sum()
    pooled_mean = (numbers * means).sum() / total.clamp(min=1)
    pooled_squares = (squares + numbers * (means - pooled_mean) ** 2).sum()
    return total, pooled_mean, pooled_squares / total.clamp(min=1)


def all_reduced(values: Tensor) -> Tensor:
    """The sum over all processes, in place; a collective call where there are several."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def _all_gather(row: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return row[None]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row)
    return torch.stack(rows)
