"""Actors for methods that look behind the log-probs of a response, at hidden states.

Like every actor they compute within ``forward``, where FSDP2 has gathered the weights and an adapter is switched on or
off.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.architectures import has_tested_parity
from rlhf_lightning.types import PackedBatch, SequenceLogProbs

#: Where a response's hidden state is read: at its last token, or at the last token of its prompt.
Pooling = Literal["last", "last_prompt"]


class Embedder(Actor):
    """An actor that also gives one hidden state a response."""

    def forward(
        self,
        batch: PackedBatch,
        *,
        pooling: Pooling | None = None,
        adapter: bool = True,
        statistics: frozenset[str] = frozenset(),
        **options: Any,
    ) -> Any:
        """Log-probs as of an :class:`~rlhf_lightning.models.actor.Actor`, and with ``pooling`` also embeddings.

        Args:
            batch: packed prompts and responses, on the model's device.
            pooling: where the last layer's state (after the final norm) is read; None: nowhere.
            adapter: False computes with the adapter disabled.
            statistics: see ``Actor``.
            options: of the log-probs without ``pooling``.

        Returns:
            Log-probs; with ``pooling`` a pair of log-probs and ``[responses, d]``, 0 in an empty slot.
        """
        if pooling is None:
            return super().forward(batch, adapter=adapter, statistics=statistics, **options)
        sequence = torch.arange(len(batch.response_span), device=batch.ids.device)
        source = batch.last if pooling == "last" else batch.prompt_span[batch.parent, 1] - 1
        with self.adapter_switched(adapter):
            log_probs, states = log_probs_and_states(self, batch, source.clamp(min=0), sequence, statistics)
        return log_probs, states.masked_fill(~batch.present[:, None], 0.0)


def log_probs_and_states(
    actor: Actor, batch: PackedBatch, source: Tensor, sequence: Tensor, statistics: frozenset[str] = frozenset()
) -> tuple[SequenceLogProbs, Tensor]:
    """Log-probs of the scored tokens and hidden states at other ones, from one pass where the model allows it.

    Args:
        actor: called within its own ``forward``.
        batch: packed prompts and responses.
        source: indices into ``batch.ids`` of the states wanted, ``[n]``.
        sequence: the response that each is seen from, ``[n]``.
        statistics: of the log-probs.
    """
    if not has_tested_parity(actor.base):  # its own forward makes the logits, and keeps the states
        log_probs: SequenceLogProbs = Actor.forward(actor, batch, statistics=statistics)
        return log_probs, actor.hidden(batch, source, sequence)
    hidden = actor.hidden(batch, torch.cat([batch.source, source]), torch.cat([batch.sequence, sequence]))
    before_targets, states = hidden[: len(batch.source)], hidden[len(batch.source) :]
    return actor.log_probs_of(batch, before_targets, statistics=statistics), states
