"""The part of every trained model that makes hidden states: a transformer, its adapter, and how a batch is laid out.

What stands on top of the hidden states is a subclass: the vocabulary (:class:`~rlhf_lightning.models.actor.Actor`) or a
scalar head (:class:`~rlhf_lightning.models.scorers.scorer.Scorer`). A subclass computes everything inside its
``forward``, so the hooks of FSDP2 and DDP, autocast, activation checkpointing, compiled layers and adapters act as on
any module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models import attention
from rlhf_lightning.models.architectures import FAMILIES, choose_backend
from rlhf_lightning.models.forwarding import plain_options
from rlhf_lightning.types import PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel


class Backbone(nn.Module):
    """A causal language model, with or without an adapter, that turns packed batches into hidden states.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        backend: ``packed`` (each prompt once, no padding), ``padded`` (one right-padded row a response, any model) or
            ``auto``: packed for the families whose parity is tested, else padded.

    Raises:
        ValueError: the model cannot be packed and ``backend="packed"``, or its adapter learns prompt tokens.
    """

    #: Whether the model's own head over the vocabulary is used.
    needs_vocabulary: ClassVar[bool] = True

    def __init__(
        self, model: PreTrainedModel | PeftModel, *, backend: Literal["auto", "packed", "padded"] = "auto"
    ) -> None:
        super().__init__()
        self.model: Any = model
        if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
            raise ValueError(
                "prompt-learning adapters are not supported; use an adapter inside the layers, such as LoRA"
            )
        if self.needs_vocabulary and hasattr(self.base, "saved_head"):
            origin = self.base.saved_head.origin or self.base.name_or_path
            raise ValueError(
                f"{origin} holds a reward model, which has no head over the vocabulary: start from a language model, "
                "or choose a method that trains rewards, such as method=bradley_terry"
            )
        self.backend = choose_backend(self.base, backend, vocabulary=self.needs_vocabulary)
        if self.backend == "packed":
            attention.install(self.base)

    @property
    def base(self) -> Any:
        """The transformers model, beneath any adapter (whose layers it holds)."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def trunk(self) -> Any:
        """The transformer without its head; its output is the last layer's, after the final norm."""
        return self.base.get_decoder() if self.base.config.model_type in FAMILIES else self.base.base_model

    def hidden(self, batch: PackedBatch, source: Tensor, sequence: Tensor) -> Tensor:
        """Hidden states of the last layer (after the final norm) at some tokens; one pass of the trunk.

        Args:
            batch: packed prompts and responses, on the model's device.
            source: indices into ``batch.ids``, of shape ``[n]``; tokens of a response or of its prompt.
            sequence: the response that each of them is seen from, ``[n]``. It matters to the ``padded`` backend, where
                every response has a row (and its prompt a copy) of its own.

        Returns:
            ``[n, d]``, in the dtype of the trunk.
        """
        return self.at(self.trunk_states(batch), batch, source, sequence)

    def trunk_states(self, batch: PackedBatch) -> Tensor:
        """States of all tokens after the trunk's final norm, in the layout that the trunk runs in; see :meth:`at`."""
        trunk = self.trunk
        if self.backend == "packed":
            layout = attention.SharedPrefix(attention.Layout.of(batch))
            states: Tensor = trunk(
                input_ids=batch.ids[None],
                position_ids=batch.positions[None],
                attention_mask=_placeholder(batch.ids.device),
                shared_prefix=layout,
                **plain_options(trunk),
            ).last_hidden_state
            layout.check_used(trunk)
            return states
        ids, mask = padded(batch)
        rows: Tensor = trunk(input_ids=ids, attention_mask=mask, **plain_options(trunk)).last_hidden_state
        return rows

    def at(self, states: Tensor, batch: PackedBatch, source: Tensor, sequence: Tensor) -> Tensor:
        """States at some tokens, out of the states of all tokens in the layout that the trunk ran in."""
        if self.backend == "packed":
            return states[0].index_select(0, source)
        return states[sequence, batch.positions[source]]

    def policy_copy(self) -> Backbone:
        """A copy to be frozen; what generates no response, such as a critic, is left out."""
        return copy.deepcopy(self)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own ``generate``, reachable through the module that FSDP2 shards."""
        return self.model.generate(*args, **kwargs)

    def inside(self, compute: Callable[[], Any]) -> Any:
        """Compute a function of the model; FSDP2's hooks are around it, as they are around ``forward``."""
        return compute()

    @contextmanager
    def adapter_switched(self, on: bool) -> Iterator[None]:
        """The model with its adapter on (nothing happens) or off.

        Raises:
            ValueError: off, and there is no adapter.
        """
        with nullcontext() if on else self._adapter_disabled():
            yield

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
    column = torch.arange(max(batch.host.row_lengths), device=batch.ids.device)[None]
    mask = column < length
    index = torch.where(column < prompt_length, prompt[:, :1], batch.response_span[:, :1] - prompt_length) + column
    return batch.ids[index.where(mask, 0)].where(mask, padding), mask.long()


def _placeholder(device: torch.device) -> Tensor:
    """A mask that transformers passes on untouched, so that it makes none of its own; ours come from the layout."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
