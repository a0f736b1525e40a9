"""Losses on single responses."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.methods.base import AlignmentModule
from rlhf_lightning.types import SequenceLogProbs, StepOutput, SupervisedBatch


class Supervised(AlignmentModule[SupervisedBatch]):
    """One number a response from a loss of ``rlhf_lightning.losses.supervised``."""

    kind: ClassVar[str] = "supervised"
    provides: ClassVar[frozenset[str]] = frozenset({"policy"})

    def compute(self, batch: SupervisedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of responses."""
        policy = self.policy_log_probs(batch)
        reference = self.reference_log_probs(batch)
        losses = self.loss(policy=batch.slot(policy, 0), **batch.loss_options)
        return StepOutput(self.scaled(losses, batch), self._diagnostics(policy, reference, losses))

    @torch.no_grad()
    def _diagnostics(
        self, policy: SequenceLogProbs, reference: SequenceLogProbs | None, losses: Tensor
    ) -> dict[str, Tensor]:
        values = {
            "group_loss": losses,
            "log_prob": policy.sum(),
            "length": policy.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            "log_ratio": None if reference is None else policy.token - reference.token,
        }
        return {name: value.detach() for name, value in values.items() if value is not None}
