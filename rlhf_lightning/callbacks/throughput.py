"""Speed and memory of training."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from rlhf_lightning.options import Positive
from rlhf_lightning.types import PackedBatch


class Throughput(Callback):
    """Logs useful tokens per second, the share of padding and peak memory.

    Useful tokens are those of the packed row: each prompt once, each response once, no padding. The clock includes data
    loading and excludes validation.

    * ``train/throughput/tokens_per_second`` and ``groups_per_second``: over all processes;
    * ``train/throughput/padding``: share of the model's positions that hold padding, 0 for the packed backend;
    * ``train/throughput/mfu``: share of the hardware's peak that the matrix products of the weights use;
    * ``train/memory/peak_gib``: peak of this process: memory allocated by torch on a GPU, resident set on a CPU.

    Args:
        peak_tflops: peak of one device at the run's precision, for ``mfu``; None: not logged. The operations are
            estimated: two per weight and token forward, two backward for activations and two for trained weights,
            without attention.
    """

    def __init__(self, peak_tflops: Positive | None = None) -> None:
        self.peak_tflops = peak_tflops
        self._restart()

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._step: int | None = None
        self._tokens = self._groups = 0
        self._real = self._positions = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._restart()
        self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Continue the clock."""
        self._since += time.perf_counter() - self._paused

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Count a micro-batch, and log at the end of the step."""
        self._tokens += len(batch.ids)
        self._groups += len(batch)
        real, positions = _positions(batch, getattr(pl_module.policy, "backend", "packed"))
        self._real += real
        self._positions += positions
        if trainer.global_step == self._step:
            return
        seconds = max(time.perf_counter() - self._since, 1e-9)
        rate = self._tokens / seconds
        metrics = {
            "throughput/tokens_per_second": rate * trainer.world_size,
            "throughput/groups_per_second": self._groups / seconds * trainer.world_size,
            "memory/peak_gib": _peak_gib(pl_module.device),
        }
        if self.peak_tflops is not None:
            metrics["throughput/mfu"] = rate * _operations(pl_module) / (self.peak_tflops * 1e12)
        for name, value in metrics.items():
            pl_module.track(f"train/{name}", value)
        # A process without groups in this step has no share to average.
        padding = [1 - self._real / self._positions] if self._positions else []
        pl_module.track("train/throughput/padding", torch.tensor(padding))
        self._restart()
        self._step = trainer.global_step


def _positions(batch: PackedBatch, backend: str) -> tuple[int, int]:
    """Count real tokens, and positions that the model computes for a batch."""
    if backend != "padded" or not len(batch):
        return len(batch.ids), len(batch.ids)
    rows = batch.host.row_lengths
    return sum(rows), max(rows) * len(rows)


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _operations(module: Any) -> float:
    """Floating-point operations per token, policy and reference."""
    total = trained = 0
    for parameter in module.policy.parameters():
        total += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    live = "reference" in module.needs and module.reference.kind != "cached"
    return 4.0 * total + 2.0 * trained + (2.0 * total if live else 0.0)
