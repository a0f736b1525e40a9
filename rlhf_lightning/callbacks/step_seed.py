"""Random numbers that are a function of the step, so that there is nothing about them to save."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer


class StepSeed(Callback):
    """Seeds every generator before each micro-batch from the run's seed, the step and the micro-batch's number in it.

    Dropout and sampling after a resume are then those of the run that was not interrupted, on any device, without a
    generator state in the checkpoint (where Lightning would keep process 0's only). Steps of equally many micro-batches
    have the same random numbers, whether they are accumulated or dealt to processes.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed Python, NumPy and torch (every device)."""
        part = batch_idx % trainer.accumulate_grad_batches * trainer.world_size + trainer.global_rank
        seed = derived_seed(self.seed, trainer.global_step, part)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (others' code draws from the global generator)
        torch.manual_seed(seed)


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that differs unpredictably with each part; the same in every process and Python version."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
