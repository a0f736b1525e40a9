"""Log-ratios of policy and reference on the responses of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from rlhf_lightning.types import PackedBatch, PreferenceBatch, UnpairedBatch


class LogRatios(Callback):
    r"""Logs summed log-ratios of the data's responses, in nats per response, in validation too.

    .. math:: \delta(y) = \log\pi_\theta(y \mid x) - \log\pi_{ref}(y \mid x)

    * ``train/log_ratio/mean``: over all responses;
    * ``train/log_ratio/chosen`` and ``rejected``: over those of pairs, or the desirable and the undesirable ones.

    None of these is a KL: the responses are not samples of the policy, so the mean may have either sign and shows where
    probability moves, not how far the policy has moved. (Only if the reference itself wrote the responses, the negative
    mean estimates KL(reference || policy).) KL(policy || reference) needs samples of the policy: ``val/kl/reference``
    of ``PolicySamples``, and ``train/kl/*`` of methods that learn from their own samples.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: PackedBatch, batch_idx: int
    ) -> None:
        """Add a micro-batch to the step's means."""
        _track(pl_module, "train/", outputs, batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: PackedBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch to the means over the validation data."""
        _track(pl_module, "val/", outputs, batch)


def _track(module: Any, prefix: str, outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
    if "log_ratio" in outputs:
        for name, values in _by_name(outputs["log_ratio"], batch):
            module.track(f"{prefix}log_ratio/{name}", values)


def _by_name(log_ratio: Tensor, batch: PackedBatch) -> Iterator[tuple[str, Tensor]]:
    ratios = batch.ragged(log_ratio)
    summed = ratios.sum()
    yield "mean", batch.of_present(summed)
    if isinstance(batch, PreferenceBatch):
        pair = batch.pair(ratios)
        yield from (("chosen", pair.chosen.sum()), ("rejected", pair.rejected.sum()))
    elif isinstance(batch, UnpairedBatch):
        yield from zip(("chosen", "rejected"), batch.by_label(summed), strict=True)
