"""A language model that judges which of two responses is better."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.losses.judge import stated_preference
from rlhf_lightning.methods.base import DIAGNOSTIC, AlignmentModule
from rlhf_lightning.ops.comparisons import outcomes
from rlhf_lightning.types import ComparisonBatch, Pair, StepOutput


class Judge(AlignmentModule[ComparisonBatch]):
    """One number a pair of responses from a loss of ``rlhf_lightning.losses.judge``.

    Logged: ``accuracy`` (the chosen response is preferred over both orders together, ties half), ``preference`` (the
    probability stated for it), ``consistency`` (both orders name the same response) and ``share/first`` (how often the
    response that is shown first is preferred: 1/2 without a position bias).
    """

    kind: ClassVar[str] = "comparison"
    provides: ClassVar[frozenset[str]] = frozenset({"verdict", "verdict_swapped"})

    def compute(self, batch: ComparisonBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of comparisons."""
        policy = self.policy_log_probs(batch)
        verdict, swapped = batch.verdicts(policy)
        losses: Tensor = self.loss(verdict=verdict, verdict_swapped=swapped)
        values = {"group_loss": losses, "entropy": policy.entropy, "top1": policy.top1}
        values |= {DIAGNOSTIC + name: value for name, value in _metrics(verdict, swapped).items()}
        kept = {name: value.detach() for name, value in values.items() if value is not None}
        return StepOutput(self.scaled(losses, batch), kept)


@torch.no_grad()
def _metrics(verdict: Pair, swapped: Pair) -> dict[str, Tensor]:
    preference = stated_preference(verdict, swapped)
    # True where an order prefers the chosen response, which is shown first in the first order.
    right, right_swapped = (outcomes(order.chosen.sum(), order.rejected.sum()) for order in (verdict, swapped))
    return {
        "preference": preference,
        "accuracy": outcomes(preference, 0.5),
        "consistency": (right == right_swapped).float(),
        "share/first": torch.cat([right, 1 - right_swapped]),
    }
