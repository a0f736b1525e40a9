"""Losses on pairs: a chosen and a rejected response to the same prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.methods.base import DIAGNOSTIC
from rlhf_lightning.methods.observing import ObservingModule
from rlhf_lightning.methods.optional import given
from rlhf_lightning.methods.slots import by_group
from rlhf_lightning.types import Pair, PreferenceBatch, PreferenceLoss, SequenceLogProbs, StepOutput


class Preference(ObservingModule[PreferenceBatch]):
    """One number a pair from any loss of ``rlhf_lightning.losses.preference``.

    A loss may ask for ``policy``, ``reference``, ``margin``, ``win_probability`` and ``reference_sample`` (of the
    data), ``collision`` (of the policy's distribution), ``top_k`` (its most likely tokens at the rejected responses)
    and ``running`` (moments of what it observed in earlier steps).

    Args: see ``ObservingModule``.
    """

    kind: ClassVar[str] = "preference"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"policy", "reference", "margin", "win_probability", "reference_sample", "collision", "top_k", "running"}
    )

    def compute(self, batch: PreferenceBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of pairs."""
        policy = self.policy_log_probs(batch)
        reference = self.reference_log_probs(batch)
        inputs = self._inputs(batch, policy, reference)
        result = self.loss(**{name: inputs[name]() for name in self.needs}, **batch.loss_options)
        return StepOutput(self.scaled(result.loss, batch), self._diagnostics(batch, policy, reference, result))

    def negative(self, batch: PreferenceBatch) -> Tensor:
        """The rejected responses."""
        return torch.arange(len(batch.response_span), device=batch.ids.device) % 2 == 1

    def _inputs(
        self, batch: PreferenceBatch, policy: SequenceLogProbs, reference: SequenceLogProbs | None
    ) -> dict[str, Callable[[], Any]]:
        """Functions that make the inputs that a loss may ask for, by name."""
        return {
            "policy": lambda: batch.pair(policy),
            "reference": lambda: None if reference is None else batch.pair(reference),
            "margin": lambda: given(batch, "margin"),
            "win_probability": lambda: by_group(given(batch, "win_probability"), batch),
            "reference_sample": lambda: by_group(given(batch, "reference_sample"), batch),
            "collision": lambda: batch.pair(policy.statistic("collision")),
            "top_k": lambda: None if policy.top is None else policy.top.slot(1, 2),
            "running": lambda: None if self.running is None else self.running.moments(),
        }

    @torch.no_grad()
    def _diagnostics(
        self,
        batch: PreferenceBatch,
        policy: SequenceLogProbs,
        reference: SequenceLogProbs | None,
        result: PreferenceLoss,
    ) -> dict[str, Tensor]:
        pair: Pair = batch.pair(policy)
        values = {
            "group_loss": result.loss,
            "chosen_reward": result.chosen_reward,
            "rejected_reward": result.rejected_reward,
            "chosen_log_prob": pair.chosen.sum(),
            "rejected_log_prob": pair.rejected.sum(),
            "chosen_length": pair.chosen.length,
            "rejected_length": pair.rejected.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            "observed": result.observed,
            "log_ratio": None if reference is None else policy.token - reference.token,
        }
        values |= {DIAGNOSTIC + name: value for name, value in result.diagnostics.items()}
        return {name: value.detach() for name, value in values.items() if value is not None}
