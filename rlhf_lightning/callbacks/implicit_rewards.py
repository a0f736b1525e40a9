"""Implicit rewards of preference methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor


class ImplicitRewards(Callback):
    """Logs ``reward/chosen``, ``reward/rejected``, ``reward/margin`` and ``reward/accuracy``, in validation too.

    Accuracy is the share of pairs whose chosen response has the strictly larger implicit reward, so it is 0 while
    policy and reference are equal. ``reward/length_bias`` in [-1, 1] is the mean of sign(margin) times the sign of the
    length difference: 1 says that the longer response always wins.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a micro-batch into the step's means."""
        _track(pl_module, "train/", outputs)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take a batch into the means over the validation data."""
        _track(pl_module, "val/", outputs)


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
        "accuracy": (margin > 0).float(),
        "length_bias": margin.sign() * longer.sign(),
    }.items():
        module.track(f"{prefix}reward/{name}", values)
