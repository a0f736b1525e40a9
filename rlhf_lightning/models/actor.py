"""The actor: one module that turns a packed batch into log-probs. It is what FSDP2 shards as its root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.adapters.lora import without_adapter
from rlhf_lightning.models.architectures import has_tested_parity, is_plain_head, logit_transform
from rlhf_lightning.models.backbone import Backbone, padded
from rlhf_lightning.models.forwarding import plain_options, report_every_position, takes
from rlhf_lightning.ops.divergence import Predictions, divergence
from rlhf_lightning.ops.log_probs import (
    LogitTransform,
    TokenLogProbs,
    check_statistics,
    log_probs,
    logits_log_probs,
    module_log_probs,
)
from rlhf_lightning.ops.top_k import TopLogits, logits_top, module_top_logits, top_logits
from rlhf_lightning.types import PackedBatch, SequenceLogProbs, SequencePredictions, TopTokens


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
        against: SequencePredictions | None = None,
        inside: Callable[[SequencePredictions], Any] | None = None,
    ) -> Any:
        """Log-probs (nats) of the batch's scored tokens, and what else is asked for.

        What a head over the vocabulary is made of belongs into this method, where FSDP2 has gathered the weights and an
        adapter is switched on or off: so comparisons of two models' distributions are made in here.

        Args:
            batch: packed prompts and responses, on the model's device.
            temperature: divides the logits; 1 unless the tokens were sampled at another one.
            statistics: subset of ``entropy``, ``top1`` and ``collision``.
            adapter: False computes with the adapter disabled: the base model is the reference.
            top_width: how many of the most likely tokens to give (``top``); 0: none.
            top_of: at the scored tokens of these responses, True or False for each; None: of all.
            against: what another model predicts at the same tokens, whose KL is wanted (``reference_kl``).
            inside: called with the predictions of the scored tokens in the place of all other work.

        Returns:
            A :class:`~rlhf_lightning.types.SequenceLogProbs`; what ``inside`` returns where it is given.

        Raises:
            ValueError: unknown statistics, or ``adapter=False`` for a model without an adapter.
        """
        check_statistics(statistics)
        with self.adapter_switched(adapter):
            from_hidden = has_tested_parity(self.base)
            states = self.hidden(batch, batch.source, batch.sequence) if from_hidden else self._logits(batch)
            if inside is not None:
                return inside(self.predictions(batch, states, temperature, adapter=adapter))
            log_probs = self.log_probs_of(batch, states, temperature, statistics, against)
            if top_width:
                log_probs.top = self._top(batch, states, top_width, top_of, temperature)
        return log_probs

    def log_probs_of(
        self,
        batch: PackedBatch,
        states: Tensor,
        temperature: float = 1.0,
        statistics: frozenset[str] = frozenset(),
        against: SequencePredictions | None = None,
    ) -> SequenceLogProbs:
        """Log-probs from the states that predict the scored tokens; see :meth:`forward`.

        Args:
            batch: of the states.
            states: hidden states before each scored token, ``[n, d]``; of a family that is not listed its logits.
            temperature: see :meth:`forward`; so are the other arguments.
            statistics: see there.
            against: see there.
        """
        target = batch.ids[batch.target]
        if has_tested_parity(self.base):
            out = self.token_log_probs(states, target, temperature, statistics)
        else:
            out = logits_log_probs(
                states, target, transform=LogitTransform(temperature=temperature), statistics=statistics
            )
        kl = None
        if against is not None:
            kl = divergence(self.predictions(batch, states, temperature).tokens, against.tokens, "reverse_kl")
        return SequenceLogProbs(
            out.log_prob,
            batch.sequence,
            len(batch.response_span),
            batch.totals.mean_length(),
            entropy=out.entropy,
            top1=out.top1,
            collision=out.collision,
            reference_kl=kl,
        )

    def predictions(
        self, batch: PackedBatch, states: Tensor, temperature: float = 1.0, *, adapter: bool = True
    ) -> SequencePredictions:
        """The distributions at the scored tokens, as states and a head.

        Args:
            batch: of the states.
            states: see :meth:`scored`.
            temperature: divides the logits.
            adapter: False leaves an adapter of the head out, also where they are used while it is switched on again.
        """
        if not has_tested_parity(self.base):  # its own forward has made the logits: states of a head that does nothing
            transform = LogitTransform(temperature=temperature)
            tokens = Predictions(states, head=nn.Identity(), transform=transform)
        else:
            whole, transform = self.base.get_output_embeddings(), logit_transform(self.base.config, temperature)
            head: Any = whole if adapter else without_adapter(whole)
            if is_plain_head(head):
                tokens = Predictions(states, head.weight, head.bias, transform)
            else:
                tokens = Predictions(states, head=head, transform=transform)
        return SequencePredictions(tokens, batch.sequence, len(batch.response_span), batch.totals.mean_length())

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

    def _top(
        self, batch: PackedBatch, states: Tensor, width: int, responses: Tensor | None, temperature: float
    ) -> TopTokens:
        asked = _positions(batch, responses)
        target = batch.ids[batch.target[asked]]
        if has_tested_parity(self.base):
            top = self.top_logits(states[asked], target, width, temperature)
        else:
            top = logits_top(states[asked], target, width=width, transform=LogitTransform(temperature=temperature))
        sequence, count = batch.sequence[asked], len(batch.response_span)
        return TopTokens(top.logit, top.token, top.target_logit, target, sequence, count)

    def _logits(self, batch: PackedBatch) -> Tensor:
        """Any causal language model: its own ``forward`` makes the logits, at the scored positions where it can."""
        ids, mask = padded(batch)
        row, column = batch.sequence, batch.positions[batch.source]
        options = plain_options(self.base)
        if takes(self.base, "logits_to_keep"):
            keep = torch.zeros_like(ids, dtype=torch.bool)
            keep[row, column] = True  # row by row and then by column, the order of the scored tokens
            logits: Tensor = self.base(input_ids=ids, attention_mask=mask, logits_to_keep=keep, **options).logits
            return logits.flatten(0, -2)
        report_every_position(self.base)
        logits = self.base(input_ids=ids, attention_mask=mask, **options).logits
        return logits[row, column]


def _positions(batch: PackedBatch, responses: Tensor | None) -> Tensor:
    """Indices of the scored tokens of some responses; None: of all."""
    if responses is None:
        return torch.arange(len(batch.target), device=batch.target.device)
    return responses[batch.sequence].nonzero().squeeze(1)
