"""The actor: one module that turns a packed batch into log-probs. It is what FSDP2 shards as its root."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.models.architectures import is_known, is_plain_head, logit_transform
from rlhf_lightning.models.backbone import Backbone, padded
from rlhf_lightning.ops.log_probs import (
    LogitTransform,
    TokenLogProbs,
    check_statistics,
    log_probs,
    logits_log_probs,
    module_log_probs,
)
from rlhf_lightning.types import PackedBatch, SequenceLogProbs


class Actor(Backbone):
    """A causal language model, with or without an adapter, that scores packed batches.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        backend: ``packed`` (each prompt once, no padding), ``padded`` (one right-padded row a response, any model) or
            ``auto``: packed for the families whose parity is tested, else padded.

    Raises:
        ValueError: the model cannot be packed and ``backend="packed"``, or its adapter learns prompt tokens.
    """

    def forward(
        self,
        batch: PackedBatch,
        *,
        temperature: float = 1.0,
        statistics: frozenset[str] = frozenset(),
        adapter: bool = True,
    ) -> SequenceLogProbs:
        """Log-probs (nats) of the batch's scored tokens, and the statistics asked for.

        Args:
            batch: packed prompts and responses, on the model's device.
            temperature: divides the logits; 1 unless the tokens were sampled at another one.
            statistics: subset of ``entropy``, ``top1`` and ``collision``.
            adapter: False computes with the adapter disabled: the base model is the reference.

        Raises:
            ValueError: unknown statistics, or ``adapter=False`` for a model without an adapter.
        """
        check_statistics(statistics)
        with self.adapter_switched(adapter):
            if is_known(self.base):
                hidden = self.hidden(batch, batch.source, batch.sequence)
                out = self.token_log_probs(hidden, batch.ids[batch.target], temperature, statistics)
            else:
                out = self._score_by_logits(batch, LogitTransform(temperature=temperature), statistics)
        return SequenceLogProbs(
            out.log_prob,
            batch.sequence,
            len(batch.response_span),
            batch.totals.mean_length(),
            entropy=out.entropy,
            top1=out.top1,
            collision=out.collision,
        )

    def token_log_probs(
        self, hidden: Tensor, target: Tensor, temperature: float = 1.0, statistics: frozenset[str] = frozenset()
    ) -> TokenLogProbs:
        """Log-probs of tokens from the hidden states that predict them: only those states reach the vocabulary."""
        head, transform = self.base.get_output_embeddings(), logit_transform(self.base.config, temperature)
        if not is_plain_head(head):
            return module_log_probs(head, hidden, target, transform=transform, statistics=statistics)
        return log_probs(hidden, head.weight, target, head.bias, transform=transform, statistics=statistics)

    def _score_by_logits(
        self, batch: PackedBatch, transform: LogitTransform, statistics: frozenset[str]
    ) -> TokenLogProbs:
        """Any causal language model: its own ``forward`` makes the logits, at the scored positions where it can."""
        ids, mask = padded(batch)
        row, column = batch.sequence, batch.positions[batch.source]
        parameters = inspect.signature(self.base.forward).parameters
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
        if "logits_to_keep" in parameters:
            keep = torch.zeros_like(ids, dtype=torch.bool)
            keep[row, column] = True  # row by row and then by column, the order of the scored tokens
            logits = self.base(input_ids=ids, attention_mask=mask, logits_to_keep=keep, **options).logits
            logits = logits.flatten(0, -2)
        else:
            logits = self.base(input_ids=ids, attention_mask=mask, **options).logits[row, column]
        return logits_log_probs(logits, batch.ids[batch.target], transform=transform, statistics=statistics)
