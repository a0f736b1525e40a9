"""Implicit rewards of preference methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from torch import Tensor

from rlhf_lightning.files import write_atomically
from rlhf_lightning.ops.comparisons import outcomes

#: File in the run's folder from which ``rlhf report`` draws its histograms.
FILE = "implicit_rewards.npz"


class ImplicitRewards(Callback):
    """Logs ``reward/chosen``, ``reward/rejected``, ``reward/margin`` and ``reward/accuracy``, in validation too.

    Accuracy is the share of pairs whose chosen response has the larger implicit reward, ties counting half, so it is
    1/2 while policy and reference are equal. ``reward/length_bias`` in [-1, 1] is the mean of sign(margin) times the
    sign of the length difference: 1 means that the longer response always wins.

    The rewards of every pair of the last validation pass are saved as ``<folder>/implicit_rewards.npz``: ``index`` (row
    of the data set), ``chosen``, ``rejected`` (float32, one number per pair) and ``step``.

    Args:
        folder: folder of that file; None: the trainer's ``default_root_dir``.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._pairs: list[Tensor] = []  # of (index, chosen, rejected), each (3, pairs) in float64

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a micro-batch to the step's means."""
        _track(pl_module, "train/", outputs)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Forget the pairs of an earlier pass."""
        self._pairs = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch to the means over the validation data."""
        _track(pl_module, "val/", outputs)
        if "chosen_reward" in outputs and len(batch) == len(outputs["chosen_reward"]):
            columns = batch.index, outputs["chosen_reward"], outputs["rejected_reward"]
            self._pairs.append(torch.stack([column.detach().cpu().double() for column in columns]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the pairs of this pass; a collective call."""
        if trainer.sanity_checking:
            return
        pairs = _gather(torch.cat(self._pairs, dim=1).numpy() if self._pairs else np.zeros((3, 0)))
        self._pairs = []
        if trainer.is_global_zero and pairs.shape[1]:
            _write(Path(self.folder or trainer.default_root_dir), pairs, trainer.global_step)


def _track(module: Any, prefix: str, outputs: Mapping[str, Tensor]) -> None:
    if "chosen_reward" not in outputs:
        return
    chosen, rejected = outputs["chosen_reward"], outputs["rejected_reward"]
    margin = chosen - rejected
    longer = outputs["chosen_length"] - outputs["rejected_length"]
    for name, values in {
        "chosen": chosen,
        "rejected": rejected,
        "margin": margin,
        "accuracy": outcomes(chosen, rejected),
        "length_bias": margin.sign() * longer.sign(),
    }.items():
        module.track(f"{prefix}reward/{name}", values)


def _gather(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gather the pairs of every process, in the order of the data set."""
    if dist.is_available() and dist.is_initialized():
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, pairs)
        pairs = np.concatenate(shares, axis=1)
    return pairs[:, np.argsort(pairs[0], kind="stable")]


def _write(folder: Path, pairs: NDArray[np.float64], step: int) -> None:
    """Write the file atomically."""
    index, chosen, rejected = pairs[0].astype(np.int64), *pairs[1:].astype(np.float32)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, NumPy would append its own suffix
            np.savez_compressed(file, index=index, chosen=chosen, rejected=rejected, step=np.int64(step))

    write_atomically(folder / FILE, write)
