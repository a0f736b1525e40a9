"""Losses on ranked lists: several responses to a prompt, each with a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.losses.lists import best, worse
from rlhf_lightning.methods.base import DIAGNOSTIC
from rlhf_lightning.methods.observing import ObservingModule
from rlhf_lightning.methods.slots import by_group
from rlhf_lightning.types import GroupLoss, RankedBatch, SequenceLogProbs, StepOutput


class Ranked(ObservingModule[RankedBatch]):
    """One number a list from any loss of ``rlhf_lightning.losses.ranking`` and ``rlhf_lightning.losses.filtered``.

    A loss may ask for ``policy``, ``reference``, ``score`` and ``present`` (both ``[groups, slots]``),
    ``win_probability`` (scores that are probabilities) and ``running`` (moments of what it observed in earlier steps).
    Lists may differ in length.

    Logged: ``rank/tau``, Kendall's tau between the data's scores and the policy's rewards, and ``rank/violated``, the
    share of response pairs that the policy has in the wrong order; both over pairs with different scores. As for pairs,
    ``reward/chosen`` is the reward of each list's best response and ``reward/rejected`` that of its worst.

    Args: see ``ObservingModule``.
    """

    kind: ClassVar[str] = "ranked"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"policy", "reference", "score", "win_probability", "present", "running"}
    )

    def compute(self, batch: RankedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of lists."""
        policy = self.policy_log_probs(batch)
        reference = self.reference_log_probs(batch)
        inputs: dict[str, Callable[[], Any]] = {
            "policy": lambda: policy,
            "reference": lambda: reference,
            "score": lambda: by_group(batch.score, batch),
            "win_probability": lambda: by_group(batch.score, batch),
            "present": lambda: by_group(batch.present, batch),
            "running": lambda: None if self.running is None else self.running.moments(),
        }
        result = self.loss(**{name: inputs[name]() for name in self.needs}, **batch.loss_options)
        return StepOutput(self.scaled(result.loss, batch), self._diagnostics(batch, policy, reference, result))

    @torch.no_grad()
    def _diagnostics(
        self, batch: RankedBatch, policy: SequenceLogProbs, reference: SequenceLogProbs | None, result: GroupLoss
    ) -> dict[str, Tensor]:
        values = {
            "group_loss": result.loss,
            "log_prob": policy.sum()[batch.present],
            "length": policy.length[batch.present],
            "entropy": policy.entropy,
            "top1": policy.top1,
            "observed": result.observed,
            "log_ratio": None if reference is None else policy.token - reference.token,
            **_order(batch, result.reward, policy.length),
        }
        values |= {DIAGNOSTIC + name: value for name, value in result.diagnostics.items()}
        return {name: value.detach() for name, value in values.items() if value is not None}


def _order(batch: RankedBatch, reward: Tensor, length: Tensor) -> dict[str, Tensor]:
    """Order, best and worst response of the policy's rewards, compared with the scores, where these differ."""
    score, present = by_group(batch.score, batch), by_group(batch.present, batch)
    rewards, lengths = by_group(reward, batch), by_group(length, batch)
    below = worse(score, present)
    pairs = below.sum((1, 2))
    some = pairs > 0
    sign = (rewards[:, :, None] - rewards[:, None, :]).sign()
    tau = torch.where(below, sign, 0.0).sum((1, 2))[some] / pairs[some]
    violated = (below & (sign < 0)).sum((1, 2))[some] / pairs[some]
    top, bottom = best(score, present), best(-score, present)
    return {
        DIAGNOSTIC + "rank/tau": tau,
        DIAGNOSTIC + "rank/violated": violated,
        "chosen_reward": (top * rewards).sum(-1)[some],
        "rejected_reward": (bottom * rewards).sum(-1)[some],
        "chosen_length": (top * lengths).sum(-1)[some],
        "rejected_length": (bottom * lengths).sum(-1)[some],
    }
