"""Stops a run at the first non-finite loss or gradient, and reports its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from rlhf_lightning.types import PackedBatch


class NonFiniteError(RuntimeError):
    """A loss or a gradient is infinite or not a number. The weights are those before the failing step."""


class NonFiniteStop(Callback):
    """Checks the loss and the gradient's norm before every optimiser step, and logs the norm (before clipping).

    The step that fails is not taken. Every process writes ``nonfinite_step<step>_rank<rank>.json`` with the loss and
    the rows of each of the step's micro-batches.

    Args:
        folder: folder of the file; None: the trainer's ``default_root_dir``.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._batches: list[PackedBatch] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: PackedBatch, batch_idx: int) -> None:
        """Remember the rows of the step."""
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """Remember the loss; it is read once per step, since reading it waits for the device."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Check the step. A collective call.

        Raises:
            NonFiniteError: raised in every process if any of them has a non-finite value.
        """
        norm = _norm([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
        losses = torch.stack(self._losses)
        pl_module.track("train/grad_norm", norm)
        # A gradient scaler skips steps with infinite gradients by design.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        finite = losses.isfinite().all() & (norm.isfinite() | scaled)
        broken = trainer.strategy.reduce((~finite).float(), reduce_op="sum")  # on the device: the next line waits once
        if broken > 0:
            path = self._report(trainer, losses, norm)
            raise NonFiniteError(
                f"step {trainer.global_step}: the loss is {_text(losses)} and the gradient norm is {norm.item()}. The "
                f"step was not taken; its rows are in {path}. Check these rows, lower optimizer.lr, or set "
                "trainer.gradient_clip_val"
            )
        self._batches.clear()
        self._losses.clear()

    def _report(self, trainer: Trainer, losses: Tensor, norm: Tensor) -> Path:
        folder = Path(self.folder or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"nonfinite_step{trainer.global_step}_rank{trainer.global_rank}.json"
        report = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "rank": trainer.global_rank,
            "grad_norm": str(norm.item()),
            "micro_batches": [
                {"loss": str(loss), "finite": loss == loss and abs(loss) != float("inf"), "rows": batch.rows,
                 "index": batch.index.tolist()}
                for loss, batch in zip(losses.tolist(), self._batches, strict=True)
            ],
        }  # fmt: skip
        path.write_text(json.dumps(report, indent=1) + "\n")
        return path


def _norm(gradients: list[Tensor]) -> Tensor:
    norm = get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _text(losses: Tensor) -> str:
    return ", ".join(f"{loss:.4g}" for loss in losses.tolist())
