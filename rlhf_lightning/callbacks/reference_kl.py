"""How far the policy has moved from the reference on the training data."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from rlhf_lightning.ops.kl import k1, k3
from rlhf_lightning.types import PackedBatch


class ReferenceKL(Callback):
    """Logs ``train/kl/reference`` (k1) and ``train/kl/k3``, in nats a response.

    The tokens are those of the data, not samples of the policy, so these are summed log-ratios and not estimates of
    KL(policy || reference): k1 may well be negative. The estimate is ``val/kl/reference``, which ``PolicySamples``
    takes from the policy's own samples.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Take a micro-batch into the step's means."""
        if "log_ratio" not in outputs:
            return
        for name, estimate in (("reference", k1), ("k3", k3)):
            values = batch.ragged(estimate(outputs["log_ratio"])).sum()
            pl_module.track(f"train/kl/{name}", values[batch.present])
