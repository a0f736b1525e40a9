"""Random numbers as a function of the step, so that a checkpoint needs no generator state."""

from __future__ import annotations

import hashlib
import logging
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from rlhf_lightning.options import Seed

log = logging.getLogger(__name__)


class StepSeed(Callback):
    """Seeds every generator before each micro-batch from the run's seed, the step and the micro-batch's number in it.

    Dropout and sampling after a resume are then those of an uninterrupted run, on any device, without a generator state
    in the checkpoint (where Lightning would keep that of process 0 only). Steps with the same number of micro-batches
    have the same random numbers, whether these are accumulated or distributed over processes. With another number of
    micro-batches they differ, since torch draws one dropout mask for all tokens of a micro-batch; a run with dropout
    and several micro-batches per step reports that.

    Args:
        seed: seed of the run.
    """

    def __init__(self, seed: Seed = 0) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Report dropout whose masks depend on the number of micro-batches."""
        count = trainer.accumulate_grad_batches * trainer.world_size
        if count > 1 and trainer.is_global_zero and any(_drops(module) for module in pl_module.modules()):
            log.info(
                "the model has dropout, and its masks depend on the number of micro-batches per step, here %d "
                "(trainer.accumulate_grad_batches x devices): with another number, runs differ by more than rounding",
                count,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed Python, NumPy and torch (every device)."""
        part = batch_idx % trainer.accumulate_grad_batches * trainer.world_size + trainer.global_rank
        seed = derived_seed(self.seed, trainer.global_step, part)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (others' code draws from the global generator)
        torch.manual_seed(seed)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def derived_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from all parts; the same in every process and Python version."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
