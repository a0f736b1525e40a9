"""Exponential moving average of the policy's weights, used by validation and export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlhf_lightning.sharded_state import as_sharded, like, local


class EMAWeights(Callback):
    r"""Averages the trained weights over the optimiser steps and swaps the average in for validation and export.

    .. math:: \bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta

    The average is kept in float32 (in the weights' own dtype it would not move), starts as the initial weights, is
    sharded like the weights and is part of the checkpoint. Training never sees it.

    Args:
        decay: in [0, 1); 0.999 averages over about the last thousand steps.
        every_n_steps: optimiser steps between updates.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1 or every_n_steps < 1:
            raise ValueError(
                f"callbacks.ema: decay={decay} must lie in [0, 1) and every_n_steps={every_n_steps} be at least 1"
            )
        self.decay, self.every_n_steps = decay, every_n_steps
        self._weights: dict[str, nn.Parameter] = {}  # name -> the weight itself
        self._average: dict[str, Tensor] = {}  # name -> this process's shard of the average
        self._saved: dict[str, Tensor] | None = None  # from a checkpoint
        self._stash: dict[str, Tensor] = {}  # the trained weights while the average replaces them
        self._done = 0

    # The average

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start from the checkpoint's average, or from the weights."""
        if self._saved or not self._weights:
            self._prepare(pl_module)
        self._done = trainer.global_step

    def _prepare(self, module: Any) -> None:
        _reshard(module)
        self._weights = dict(module.trained_parameters())
        for name, weight in self._weights.items():
            self._average[name] = local(like(self._saved[name], weight) if self._saved else weight).float().clone()
        self._saved = None
        module.evaluation_weights = lambda: self.swapped(module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update after the optimiser step."""
        if trainer.global_step == self._done:
            return
        self._done = trainer.global_step
        if trainer.global_step % self.every_n_steps == 0:
            for name, weight in self._weights.items():
                self._average[name].lerp_(local(weight).float(), 1 - self.decay)

    # Its use

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Swap the average in."""
        if not self._weights and self._saved:  # trainer.validate of a checkpoint
            self._prepare(pl_module)
        self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Swap the weights back in, before any checkpoint is written."""
        self._swap(pl_module)

    @contextmanager
    def swapped(self, module: Any) -> Iterator[None]:
        """Give the module the averaged weights within a block; nothing happens if it has them already."""
        if self._stash:
            yield
            return
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    @torch.no_grad()
    def _swap(self, module: Any) -> None:
        _reshard(module)
        incoming = self._stash or self._average
        outgoing = {} if self._stash else {name: local(weight).clone() for name, weight in self._weights.items()}
        for name, weight in self._weights.items():
            local(weight).copy_(incoming[name])
        self._stash = outgoing

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The average, sharded as the weights are."""
        return {"weights": {name: _saved(self._average[name], weight) for name, weight in self._weights.items()}}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Save the trained weights even if the averaged ones are swapped in, as after an error during validation."""
        state = checkpoint.get("state_dict", {})
        for name, weight in self._stash.items():
            if f"policy.{name}" in state:
                state[f"policy.{name}"] = _saved(weight, self._weights[name])

    def restore(self, module: Any, state_dict: dict[str, Any]) -> None:
        """Load the average of a checkpoint into a module without a trainer, for export."""
        self.load_state_dict(state_dict)
        self._prepare(module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the average, whole or sharded, until the weights exist."""
        self._saved = state_dict["weights"]


def _saved(average: Tensor, weight: Tensor) -> Tensor:
    """The average of one weight for a checkpoint: sharded where the weight is, else on the CPU."""
    average = as_sharded(average, weight)
    return average if isinstance(average, DTensor) else average.cpu().clone()


def _reshard(module: Any) -> None:
    """Restore the root's shards, since a forward pass without gradients leaves its gathered weights instead."""
    for part in module.policy.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
