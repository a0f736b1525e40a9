"""Statistics of the data's responses under the policy: log-probs, lengths, entropy, token accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

#: Metric by key of a step's outputs. Entropy and top-1 hits have one number per token, the others one per response.
METRICS = {
    "chosen_log_prob": "log_prob/chosen",
    "rejected_log_prob": "log_prob/rejected",
    "log_prob": "log_prob/response",
    "chosen_length": "length/chosen",
    "rejected_length": "length/rejected",
    "length": "length/response",
    "entropy": "token/entropy",
    "top1": "token/accuracy",
}


class ResponseStatistics(Callback):
    """Logs summed log-probs (nats), lengths (tokens), and per token entropy (nats) and top-1 accuracy.

    A falling ``log_prob/chosen`` is not an error by itself: losses on the margin lower both log-probs when training
    starts from a model that was tuned on the chosen responses.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a micro-batch to the step's means."""
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
        """Add a batch to the means over the validation data."""
        _track(pl_module, "val/", outputs)


def _track(module: Any, prefix: str, outputs: Mapping[str, Tensor]) -> None:
    for key, metric in METRICS.items():
        if key in outputs:
            module.track(prefix + metric, outputs[key].float())
