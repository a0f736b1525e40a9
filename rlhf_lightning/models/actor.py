"""The actor: one module that turns a packed batch into log-probs. It is what FSDP2 shards as its root.

Everything is computed inside :meth:`Actor.forward`, so the hooks of FSDP2 and DDP, autocast, activation checkpointing,
compiled layers and adapters act as they do on any module.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models import attention
from rlhf_lightning.models.architectures import choose_backend, is_known, is_plain_head, logit_transform
from rlhf_lightning.ops.log_probs import (
    LogitTransform,
    TokenLogProbs,
    check_statistics,
    log_probs,
    logits_log_probs,
    module_log_probs,
)
from rlhf_lightning.types import PackedBatch, SequenceLogProbs

if TYPE_CHECKING:
    from peft import PeftModel


class Actor(nn.Module):
    """A causal language model, with or without an adapter, that scores packed batches.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        backend: ``packed`` (each prompt once, no padding), ``padded`` (one right-padded row a response, any model) or
            ``auto``: packed for the families whose parity is tested, else padded.

    Raises:
        ValueError: the model cannot be packed and ``backend="packed"``, or its adapter learns prompt tokens.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, *, backend: Literal["auto", "packed", "padded"] = "auto"
    ) -> None:
        super().__init__()
        self.model: Any = model
        if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
            raise ValueError(
                "prompt-learning adapters are not supported; use an adapter inside the layers, such as LoRA"
            )
        self.backend = choose_backend(self.base, backend)
        if self.backend == "packed":
            attention.install(self.base)

    @property
    def base(self) -> Any:
        """The transformers model, beneath any adapter (whose layers it holds)."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

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
        with nullcontext() if adapter else self._adapter_disabled():
            if is_known(self.base):
                out = self._score(batch, logit_transform(self.base.config, temperature), statistics)
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

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own ``generate``, reachable through the module that FSDP2 shards."""
        return self.model.generate(*args, **kwargs)

    def _score(self, batch: PackedBatch, transform: LogitTransform, statistics: frozenset[str]) -> TokenLogProbs:
        """Only the hidden states that predict scored tokens reach the vocabulary."""
        trunk, head = self.base.get_decoder(), self.base.get_output_embeddings()
        if self.backend == "packed":
            hidden = trunk(
                input_ids=batch.ids[None],
                position_ids=batch.positions[None],
                attention_mask=_placeholder(batch.ids.device),
                use_cache=False,
                shared_prefix=attention.SharedPrefix(batch),
            ).last_hidden_state[0]
            hidden = hidden.index_select(0, batch.source)
        else:
            ids, mask = padded(batch)
            hidden = trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            hidden = hidden[batch.sequence, batch.positions[batch.source]]
        target = batch.ids[batch.target]
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

    @contextmanager
    def _adapter_disabled(self) -> Iterator[None]:
        """The base model; afterwards every parameter requires gradients exactly where it did before."""
        if not hasattr(self.model, "peft_config"):
            raise ValueError("adapter=False needs a model with an adapter; choose another reference (frozen, cached)")
        before = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        with self.model.disable_adapter():
            yield
        for parameter, required in before:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)


def padded(batch: PackedBatch, padding: int = 0) -> tuple[Tensor, Tensor]:
    """One right-padded row a response, its prompt first: ids and mask, both ``[responses, longest]``.

    A token of the packed row that belongs to response ``r`` or its prompt stands in row ``r`` at the column that
    ``batch.positions`` names.
    """
    prompt = batch.prompt_span[batch.parent]
    prompt_length = (prompt[:, 1] - prompt[:, 0])[:, None]
    length = prompt_length + (batch.response_span[:, 1] - batch.response_span[:, 0])[:, None]
    column = torch.arange(int(length.max()), device=batch.ids.device)[None]
    mask = column < length
    index = torch.where(column < prompt_length, prompt[:, :1], batch.response_span[:, :1] - prompt_length) + column
    return batch.ids[index.where(mask, 0)].where(mask, padding), mask.long()


def _placeholder(device: torch.device) -> Tensor:
    """A mask that transformers passes on untouched, so that it makes none of its own; ours come from the layout."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
