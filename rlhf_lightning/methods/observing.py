"""The part of a method whose loss may ask for running statistics, the same for every data flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.methods.base import AlignmentModule, BatchT
from rlhf_lightning.methods.optional import check_inputs
from rlhf_lightning.methods.running import RunningMoments

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models


class ObservingModule(AlignmentModule[BatchT]):
    """Keeps the moments of what a loss observed (``running``), a whole optimiser step at a time.

    The subclass puts the loss's ``observed`` among its diagnostics.

    Args:
        models: see ``AlignmentModule``.
        loss: see ``AlignmentModule``.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        running_decay: of the past per optimiser step in the running moments; None: cumulative moments. Only losses
            that ask for ``running`` have any.
        statistics: see ``AlignmentModule``.
    """

    def __init__(
        self,
        models: Callable[[], Models],
        loss: Callable[..., Any],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        running_decay: float | None = None,
        statistics: Sequence[str] = (),
    ) -> None:
        super().__init__(models, loss, optimizer, scheduler, statistics=statistics)
        self.running = RunningMoments(running_decay) if "running" in self.needs else None
        self._observed: list[Tensor] = []

    def setup(self, stage: str) -> None:
        """As in the base class; refuse data without what the loss asks of it before any weight loads."""
        super().setup(stage)
        check_inputs(getattr(self.trainer, "datamodule", None), self.needs, stage)

    def training_step(self, batch: BatchT, batch_idx: int) -> dict[str, Tensor]:
        """As in the base class; what the loss observed waits for the end of the optimiser step."""
        outputs = super().training_step(batch, batch_idx)
        if self.running is not None:
            self._observed.append(outputs["observed"])
        return outputs

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Fold a whole step into the running moments, so that every micro-batch of it has seen the same ones."""
        super().on_before_optimizer_step(optimizer)
        if self.running is not None and self._observed:
            self.running.update(torch.cat(self._observed))
            self._observed.clear()
