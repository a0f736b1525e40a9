"""Methods on responses under opposite instructions, and on the hidden states that two models or instructions give."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.methods.base import DIAGNOSTIC, STATISTICS, AlignmentModule
from rlhf_lightning.methods.slots import by_group, only_slot
from rlhf_lightning.models.blocks import check_layers, decoder_layers
from rlhf_lightning.models.hidden_states.layers import LayerActor
from rlhf_lightning.models.roles.reference import AdapterDisabled
from rlhf_lightning.types import (
    InstructionBatch,
    LayerStates,
    MeasuredLoss,
    PackedBatch,
    PreferenceBatch,
    Ragged,
    SequenceLogProbs,
    StepOutput,
)

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models

log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=PackedBatch)
#: Slots of an ``InstructionBatch``.
POSITIVE, NEGATIVE, PLAIN = 0, 1, 2


class Instructed(AlignmentModule[InstructionBatch]):
    """One number a response from a loss on its log-probs behind the instruction that it obeys and behind the opposite.

    Args: see ``AlignmentModule``.
    """

    kind: ClassVar[str] = "instruction"
    provides: ClassVar[frozenset[str]] = frozenset({"match", "opposite"})

    def compute(self, batch: InstructionBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch."""
        both = only_slot(batch, POSITIVE, NEGATIVE)
        policy: SequenceLogProbs = self.policy(both, statistics=self.statistics if self.training else STATISTICS)
        positive, negative = both.slot(policy, 0), both.slot(policy, 1)
        good = by_group(batch.desirable, batch)[:, PLAIN] > 0.5
        match, opposite = _chosen(good, positive, negative), _chosen(good, negative, positive)
        result: MeasuredLoss = self.loss(match=match, opposite=opposite)
        values = {
            "group_loss": result.loss,
            "log_prob": match.sum(),
            "length": match.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            **{DIAGNOSTIC + name: value for name, value in result.diagnostics.items()},
        }
        named = {name: value.detach() for name, value in values.items() if value is not None}
        return StepOutput(self.scaled(result.loss, batch), named)


class RepresentationAlignment(AlignmentModule[BatchT]):
    """An adapter brings hidden states to where the difference of two other passes would move them.

    The base is the model that training begins with. Of the trained model, and of all others, no block above the
    highest layer that is read is run; the adapter is on the blocks up to there only, since no gradient reaches any
    above. Logged: of each layer the distance that is left (``fit/<layer>``), the length of the difference
    (``shift/<layer>``) and the cosine between it and how far the states have moved (``cosine/<layer>``); in validation
    also the log-probs of good and bad responses, a token (``log_prob/chosen`` and ``log_prob/rejected``).

    Args:
        models: see ``AlignmentModule``; with an adapter.
        loss: a loss of ``rlhf_lightning.losses.representation`` on states.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        layers: numbers of the decoder blocks whose outputs are read, from 1; None: by ``shares``.
        shares: without ``layers``, the layers as shares of the model's depth.
        statistics: see ``AlignmentModule``.

    Raises:
        ValueError: there is no adapter, or the model has no such layer.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"states", "base", "positive", "negative", "reference"})
    actor = LayerActor

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., MeasuredLoss],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        layers: Sequence[int] | None = None,
        shares: Sequence[float] = (0.3125, 0.375, 0.4375, 0.5, 0.5625),
        statistics: Sequence[str] = (),
    ) -> None:
        self._asked, self._shares = layers, shares
        super().__init__(
            models, loss, optimizer, scheduler, statistics=statistics, extra_needs=frozenset({"reference"})
        )

    @classmethod
    def requires(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """The inputs of the loss, and a reference, whose states its target is made of."""
        return super().requires(options) | {"reference"}

    def _check(self, models: Any) -> None:
        super()._check(models)
        if models.adapter is None:
            raise ValueError(
                f"method {type(self).__name__} fits an adapter, and the model without it is its base: adapter=lora"
            )
        if str(models.reference) == "cached":
            raise ValueError(
                "representation alignment compares hidden states, and reference=cached keeps log-probs of the "
                "responses only: choose reference=auto"
            )
        count = models.source.sizes().layers
        self.layers = self._chosen_layers(count)
        highest = max(self.layers)
        if models.adapter.blocks is None and models.adapter.path is None:
            models.adapter = replace(models.adapter, blocks=highest)
        elif (models.adapter.blocks or 0) > highest:
            raise ValueError(
                f"adapter.blocks={models.adapter.blocks}: the highest layer that method.layers={list(self.layers)} "
                f"read is {highest}, and no gradient reaches a block above it: adapter.blocks=null"
            )

    def _chosen_layers(self, count: int) -> tuple[int, ...]:
        if self._asked is not None:
            layers = tuple(self._asked)
        else:
            if not self._shares or not all(0 < share <= 1 for share in self._shares):
                raise ValueError(f"method.shares={list(self._shares)} are shares of the model's depth: in (0, 1]")
            layers = tuple(dict.fromkeys(max(1, round(share * count)) for share in self._shares))
        check_layers("method.layers", layers, count)
        return layers

    def configure_model(self) -> None:
        """Load the models, and refuse an adapter on blocks that no gradient reaches.

        Raises:
            ValueError: ``adapter.path`` is an adapter that is trained on such a block.
        """
        if self.policy is not None:
            return
        super().configure_model()
        policy: Any = self.policy
        above = decoder_layers(policy)[max(self.layers) :]
        if any(parameter.requires_grad for block in above for parameter in block.parameters()):
            raise ValueError(
                f"adapter.path holds an adapter on blocks above {max(self.layers)}, the highest layer that "
                f"method.layers={list(self.layers)} read, where no gradient reaches it: read a higher layer, or start "
                "from a new adapter"
            )

    def compute(self, batch: BatchT) -> StepOutput:
        """Loss and diagnostics of a micro-batch."""
        plain, desirable = self.plain(batch)
        base, positive, negative = self.target(batch)
        states: LayerStates = self.policy(plain, layers=self.layers)
        result: MeasuredLoss = self.loss(states=states, base=base, positive=positive, negative=negative)
        losses = by_group(result.loss, plain).mean(1)
        values: dict[str, Tensor | None] = {"group_loss": losses}
        values |= {DIAGNOSTIC + name: value for name, value in result.diagnostics.items()}
        if not self.training:
            policy: SequenceLogProbs = self.policy(plain, statistics=STATISTICS)
            values |= {"log_prob": policy.sum(), "length": policy.length}
            values |= {"entropy": policy.entropy, "top1": policy.top1}
            mean = policy.mean()
            values[DIAGNOSTIC + "log_prob/chosen"] = mean[desirable]
            values[DIAGNOSTIC + "log_prob/rejected"] = mean[~desirable]
        named = {name: value.detach() for name, value in values.items() if value is not None}
        return StepOutput(self.scaled(losses, batch), named)

    @abstractmethod
    def plain(self, batch: BatchT) -> tuple[PackedBatch, Tensor]:
        """Responses behind their prompts alone, and whether each is a good one."""

    @abstractmethod
    def target(self, batch: BatchT) -> tuple[LayerStates, LayerStates, LayerStates]:
        """States of the base, and positive and negative ones, at the tokens of :meth:`plain`; without gradients."""


class InstructedRepresentation(RepresentationAlignment[InstructionBatch]):
    """The difference is that of one model under opposite instructions (RAHF-SCIT, LoRRA): the reference.

    Args: see ``RepresentationAlignment``.
    """

    kind: ClassVar[str] = "instruction"

    def _check(self, models: Any) -> None:
        super()._check(models)
        if str(models.reference) == "teacher":
            raise ValueError(
                f"method {type(self).__name__} compares one model under two instructions, and reference=teacher is "
                "another model: choose reference=auto"
            )

    def plain(self, batch: InstructionBatch) -> tuple[PackedBatch, Tensor]:
        """The responses behind their prompts alone."""
        return only_slot(batch, PLAIN), by_group(batch.desirable, batch)[:, PLAIN] > 0.5

    def target(self, batch: InstructionBatch) -> tuple[LayerStates, LayerStates, LayerStates]:
        """States of the model before training, behind the prompts alone and behind each instruction.

        Each in a pass of its own: the base's has the very layout of the policy's, so that both give the same bits.
        """
        return tuple(
            self._live_reference(only_slot(batch, slot), layers=self.layers) for slot in (PLAIN, POSITIVE, NEGATIVE)
        )


class ContrastedModels(RepresentationAlignment[PreferenceBatch]):
    """The difference is that between the model that training begins with and a worse one (RAHF-Dual): the teacher.

    Args: see ``RepresentationAlignment``.

    Raises:
        ValueError: the worse model is not named, or has another depth or width.
    """

    kind: ClassVar[str] = "preference"

    def _check(self, models: Any) -> None:
        super()._check(models)
        if models.teacher is None:
            raise ValueError(
                "this method holds the model against one that was trained on bad responses: name that one with "
                "reference=teacher model@reference.source=..."
            )
        base, teacher = models.source.sizes(), models.teacher.sizes()
        if base != teacher:
            raise ValueError(
                f"reference.source={models.teacher.name} has {teacher.layers} layers of width {teacher.width} and "
                f"model {models.source.name} {base.layers} of width {base.width}: states of both are compared"
            )

    def plain(self, batch: PreferenceBatch) -> tuple[PackedBatch, Tensor]:
        """Both responses of each pair."""
        return batch, torch.arange(len(batch.response_span), device=batch.ids.device) % 2 == 0

    def target(self, batch: PreferenceBatch) -> tuple[LayerStates, LayerStates, LayerStates]:
        """States of the good model, which is the base as well, and of the bad one."""
        good: LayerStates = AdapterDisabled(self.policy)(batch, layers=self.layers)
        return good, good, self._live_reference(batch, layers=self.layers)


def _chosen(first: Tensor, values: Ragged, others: Ragged) -> Ragged:
    """Of every response the values of one of two contexts, in which its tokens are the same."""
    return values.with_token(torch.where(first[values.sequence], values.token, others.token))
