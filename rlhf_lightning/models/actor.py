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
from rlhf_lightning.ops.top_k import TopLogits, logits_top, module_top_logits, top_logits
from rlhf_lightning.types import PackedBatch, SequenceLogProbs, TopTokens


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
        top_width: int = 0,
        top_of: Tensor | None = None,
    ) -> SequenceLogProbs:
        """Log-probs (nats) of the batch's scored tokens, and the statistics asked for.

        Args:
            batch: packed prompts and responses, on the model's device.
            temperature: divides the logits; 1 unless the tokens were sampled at another one.
            statistics: subset of ``entropy``, ``top1`` and ``collision``.
            adapter: False computes with the adapter disabled: the base model is the reference.
            top_width: how many of the most likely tokens to give (``top``); 0: none.
            top_of: at the scored tokens of these responses, True or False for each; None: of all.

        Raises:
            ValueError: unknown statistics, or ``adapter=False`` for a model without an adapter.
        """
        check_statistics(statistics)
        target = batch.ids[batch.target]
        asked = _positions(batch, top_of) if top_width else None
        top: TopLogits | None = None
        with self.adapter_switched(adapter):
            if is_known(self.base):
                hidden = self.hidden(batch, batch.source, batch.sequence)
                out = self.token_log_probs(hidden, target, temperature, statistics)
                if asked is not None:
                    top = self.top_logits(hidden[asked], target[asked], top_width, temperature)
            else:
                logits, transform = self._logits(batch), LogitTransform(temperature=temperature)
                out = logits_log_probs(logits, target, transform=transform, statistics=statistics)
                if asked is not None:
                    top = logits_top(logits[asked], target[asked], width=top_width, transform=transform)
        return SequenceLogProbs(
            out.log_prob,
            batch.sequence,
            len(batch.response_span),
            batch.totals.mean_length(),
            entropy=out.entropy,
            top1=out.top1,
            collision=out.collision,
            top=None if top is None or asked is None else _top_tokens(batch, top, asked),
        )

    def token_log_probs(
        self, hidden: Tensor, target: Tensor, temperature: float = 1.0, statistics: frozenset[str] = frozenset()
    ) -> TokenLogProbs:
        """Log-probs of tokens from the hidden states that predict them: only those states reach the vocabulary."""
        head, transform = self.base.get_output_embeddings(), logit_transform(self.base.config, temperature)
        if not is_plain_head(head):
            return module_log_probs(head, hidden, target, transform=transform, statistics=statistics)
        return log_probs(hidden, head.weight, target, head.bias, transform=transform, statistics=statistics)

    def top_logits(self, hidden: Tensor, target: Tensor, width: int, temperature: float = 1.0) -> TopLogits:
        """The highest logits from the hidden states that predict some tokens, and the tokens' own."""
        head, transform = self.base.get_output_embeddings(), logit_transform(self.base.config, temperature)
        if not is_plain_head(head):
            return module_top_logits(head, hidden, target, width=width, transform=transform)
        return top_logits(hidden, head.weight, target, head.bias, width=width, transform=transform)

    def _logits(self, batch: PackedBatch) -> Tensor:
        """Any causal language model: its own ``forward`` makes the logits, at the scored positions where it can."""
        ids, mask = padded(batch)
        row, column = batch.sequence, batch.positions[batch.source]
        parameters = inspect.signature(self.base.forward).parameters
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
        if "logits_to_keep" in parameters:
            keep = torch.zeros_like(ids, dtype=torch.bool)
            keep[row, column] = True  # row by row and then by column, the order of the scored tokens
            logits: Tensor = self.base(input_ids=ids, attention_mask=mask, logits_to_keep=keep, **options).logits
            return logits.flatten(0, -2)
        logits = self.base(input_ids=ids, attention_mask=mask, **options).logits
        return logits[row, column]


def _positions(batch: PackedBatch, responses: Tensor | None) -> Tensor:
    """Indices of the scored tokens of some responses; None: of all."""
    if responses is None:
        return torch.arange(len(batch.target), device=batch.target.device)
    return responses[batch.sequence].nonzero().squeeze(1)


def _top_tokens(batch: PackedBatch, top: TopLogits, asked: Tensor) -> TopTokens:
    target, sequence = batch.ids[batch.target[asked]], batch.sequence[asked]
    return TopTokens(top.logit, top.token, top.target_logit, target, sequence, len(batch.response_span))
