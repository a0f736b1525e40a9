"""Removal of verbosity from the ratings of a gated reward model before its gate is trained."""

from __future__ import annotations

import logging
from itertools import islice
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_lightning.ops.debias import verbosity_penalties
from rlhf_lightning.options import WholeNumber

log = logging.getLogger(__name__)


class VerbosityDebias(L.Callback):
    """Measures, once, the least share of the verbosity rating to subtract so that every other rating is free of it.

    Source: ArmoRM, arXiv:2406.12845; see ``ops.debias.verbosity_penalties``. A resumed run keeps the penalties.
    The authors measure on a whole reference data set, by default the preference data.

    Args:
        attribute: index of the verbosity rating, in the order of the first stage's heads.
        bound: remaining rank correlation with the verbosity rating; 0.03 in the authors' code.
        batches: optimiser steps of training data to measure on, over all processes, however they are cut.
    """

    def __init__(self, attribute: WholeNumber, bound: float = 0.03, batches: int = 64) -> None:
        if not 0 < bound < 1 or batches < 1:
            raise ValueError(
                f"callbacks.verbosity_debias: bound={bound} must be in (0, 1), and batches={batches} above 0"
            )
        self.attribute, self.bound, self.batches = attribute, bound, batches

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure on the first steps' responses; a collective call."""
        policy: Any = pl_module.policy
        if not hasattr(policy, "set_verbosity"):
            raise ValueError("callbacks.verbosity_debias needs a gated reward model: method=armorm")
        if int(policy.verbosity) >= 0:
            return
        ratings = []
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        for batch in islice(datamodule.train_dataloader(), self.batches * trainer.accumulate_grad_batches):
            moved = (batch.stand_in or batch).to(pl_module.device)
            present = moved.present if len(batch) else torch.zeros_like(moved.present)
            ratings.append(policy.ratings(moved)[0][present].cpu())
        table = _gathered(torch.cat(ratings))
        if not 0 <= self.attribute < table.shape[1]:
            raise ValueError(
                f"callbacks.verbosity_debias.attribute={self.attribute}: there are {table.shape[1]} ratings"
            )
        penalties = verbosity_penalties(table, self.attribute, bound=self.bound)
        policy.set_verbosity(self.attribute, penalties)
        log.info(
            "subtracted for verbosity (rating %d): %s",
            self.attribute,
            ", ".join(f"{value:.3g}" for value in penalties.tolist()),
        )


def _gathered(ratings: Tensor) -> Tensor:
    """Gather the ratings of all processes' responses, ``[responses, ratings]``; penalties ignore their order."""
    if dist.is_available() and dist.is_initialized():
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, ratings)
        ratings = torch.cat(shares)
    return ratings
