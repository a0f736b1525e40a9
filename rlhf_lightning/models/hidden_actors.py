"""Actors for methods that look behind the log-probs of a response: at whole distributions, or at hidden states.

Like every actor they compute within ``forward``, where FSDP2 has gathered the weights and an adapter is switched on or
off. What a head over the vocabulary is made of must not leave it; so the comparison of two models' distributions is
handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.architectures import is_known, is_plain_head, logit_transform
from rlhf_lightning.ops.divergence import Predictions
from rlhf_lightning.ops.log_probs import LogitTransform
from rlhf_lightning.types import PackedBatch, SequenceLogProbs, SequencePredictions

#: Where a response's hidden state is read: at its last token, or at the last token of its prompt.
Pooling = Literal["last", "last_prompt"]


class Predictor(Actor):
    """An actor whose distributions over the vocabulary can be compared with another model's."""

    def forward(
        self,
        batch: PackedBatch,
        *,
        inside: Callable[[SequencePredictions], Any] | None = None,
        adapter: bool = True,
        **options: Any,
    ) -> Any:
        """Log-probs as of an :class:`~rlhf_lightning.models.actor.Actor`, or what a function makes of the predictions.

        Args:
            batch: packed prompts and responses, on the model's device.
            inside: called with the predictions of the batch's scored tokens, while weights are gathered; what it
                returns is returned. None: log-probs.
            adapter: False computes with the adapter disabled.
            options: of the log-probs.
        """
        if inside is None:
            return super().forward(batch, adapter=adapter, **options)
        with self.adapter_switched(adapter):
            return inside(self._predictions(batch))

    def _predictions(self, batch: PackedBatch) -> SequencePredictions:
        if not is_known(
            self.base
        ):  # its own forward has made the logits: they are the states of a head that does nothing
            tokens = Predictions(self._logits(batch), head=nn.Identity(), transform=LogitTransform())
        else:
            head, transform = self.base.get_output_embeddings(), logit_transform(self.base.config, 1.0)
            hidden = self.hidden(batch, batch.source, batch.sequence)
            if is_plain_head(head):
                tokens = Predictions(hidden, head.weight, head.bias, transform)
            else:
                tokens = Predictions(hidden, head=head, transform=transform)
        return SequencePredictions(tokens, batch.sequence, len(batch.response_span), batch.totals.mean_length())


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
            log_probs, states = scored_with_states(self, batch, source.clamp(min=0), sequence, statistics)
        return log_probs, states.masked_fill(~batch.present[:, None], 0.0)


def scored_with_states(
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
    if not is_known(actor.base):  # its own forward makes the logits, and keeps the states
        log_probs: SequenceLogProbs = Actor.forward(actor, batch, statistics=statistics)
        return log_probs, actor.hidden(batch, source, sequence)
    hidden = actor.hidden(batch, torch.cat([batch.source, source]), torch.cat([batch.sequence, sequence]))
    scored, states = hidden[: len(batch.source)], hidden[len(batch.source) :]
    out = actor.token_log_probs(scored, batch.ids[batch.target], statistics=statistics)
    return SequenceLogProbs(
        out.log_prob,
        batch.sequence,
        len(batch.response_span),
        batch.totals.mean_length(),
        entropy=out.entropy,
        top1=out.top1,
        collision=out.collision,
    ), states
