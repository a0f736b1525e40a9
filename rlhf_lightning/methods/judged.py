"""Losses on responses with a written judgment: each is scored with the judgment in its prompt and without it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.methods.base import DIAGNOSTIC, AlignmentModule
from rlhf_lightning.types import GroupLoss, JudgedBatch, JudgedPair, SequenceLogProbs, StepOutput


class Judged(AlignmentModule[JudgedBatch]):
    """One number a row from any loss of ``rlhf_lightning.losses.judgment`` that takes both contexts.

    A loss may ask for ``policy`` only: the log-probs in both contexts.
    """

    kind: ClassVar[str] = "judged"
    provides: ClassVar[frozenset[str]] = frozenset({"policy"})

    def compute(self, batch: JudgedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of judged responses."""
        policy = self.policy_log_probs(batch)
        reference = self.reference_log_probs(batch)
        result = self.loss(policy=JudgedPair(batch.slot(policy, 0), batch.slot(policy, 1)))
        return StepOutput(self.scaled(result.loss, batch), self._diagnostics(batch, policy, reference, result))

    @torch.no_grad()
    def _diagnostics(
        self, batch: JudgedBatch, policy: SequenceLogProbs, reference: SequenceLogProbs | None, result: GroupLoss
    ) -> dict[str, Tensor]:
        plain = batch.slot(policy, 1)
        values = {
            "group_loss": result.loss,
            "reward": result.reward,
            "log_prob": plain.sum(),
            "length": plain.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            "log_ratio": None if reference is None else policy.token - reference.token,
        }
        values |= {DIAGNOSTIC + name: value for name, value in result.diagnostics.items()}
        return {name: value.detach() for name, value in values.items() if value is not None}
