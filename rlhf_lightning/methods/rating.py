"""Reward heads trained on one response at a time: labels, ratings by attribute, and the steps of a solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.methods.base import DIAGNOSTIC, AlignmentModule
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.scorer import Scorer
from rlhf_lightning.types import PackedBatch, Ragged, StepOutput

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles import Models

#: The kind of data that holds what a loss learns from.
_KINDS = {"desirable": "unpaired", "step_label": "steps", "attributes": "attributes"}


class Rating(AlignmentModule[PackedBatch]):
    """A scalar head and any loss of ``rlhf_lightning.losses.rating``.

    A loss asks for ``reward`` (one a response) and ``desirable``, for ``step_reward`` and ``step_label``, or for
    ``rating`` and ``attributes``; which of the labels it asks for decides the kind of data.

    Logged: ``accuracy`` (of labels and steps; a soft label counts as right from 1/2), ``reward/chosen`` and
    ``reward/rejected`` (mean reward by label), ``error/<attribute>`` (root mean squared error).

    Args:
        models: see ``AlignmentModule``.
        loss: see ``AlignmentModule``.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        head: builds what is trained from a transformers model; a partial of ``Scorer``. With ``attributes`` it must
            have one output for every attribute of the data.
        freeze_trunk: train the head alone.
        statistics: see ``AlignmentModule``; a scalar head has none.

    Raises:
        ValueError: see ``AlignmentModule``; or the loss asks for the labels of two kinds of data.
    """

    kind: ClassVar[str] = "unpaired"  #: of a loss of labels; the loss decides
    legal: ClassVar[frozenset[str]] = frozenset({"reward", "step_reward", "rating", *_KINDS})

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., Any],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        head: Callable[..., Backbone] = Scorer,
        freeze_trunk: bool = False,
        statistics: Sequence[str] = (),
    ) -> None:
        super().__init__(models, loss, optimizer, scheduler, statistics=statistics)
        labels = sorted(self.needs & _KINDS.keys())
        if len(labels) != 1:
            raise ValueError(f"method Rating learns from one of {sorted(_KINDS)}; the loss asks for {labels}")
        self.kind = _KINDS[labels[0]]  # type: ignore[misc]
        self.actor = head
        self.freeze_trunk = freeze_trunk

    def configure_model(self) -> None:
        """As in the base class; a frozen trunk keeps no gradients and no optimiser state."""
        if self.policy is not None:
            return
        super().configure_model()
        policy: Any = self.policy
        if self.freeze_trunk:
            policy.model.requires_grad_(False)

    def forward(self, batch: PackedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch."""
        at = "scored" if "step_label" in self.needs else "last"
        scores: Tensor = self.policy(batch, at)
        inputs = self._inputs(batch, scores)
        losses: Tensor = self.loss(**{name: inputs[name]() for name in self.needs})
        values = {"group_loss": losses, "reward": scores} | {
            DIAGNOSTIC + name: value for name, value in self._metrics(batch, scores).items()
        }
        return StepOutput(self.scaled(losses, batch), {name: value.detach() for name, value in values.items()})

    def _inputs(self, batch: Any, scores: Tensor) -> dict[str, Callable[[], Any]]:
        """How to get each input that a loss may ask for."""
        return {
            "reward": lambda: scores,
            "desirable": lambda: batch.desirable,
            "step_reward": lambda: _ragged(batch, scores),
            "step_label": lambda: batch.step_label,
            "rating": lambda: _by_attribute(batch, scores),
            "attributes": lambda: batch.attributes,
        }

    @torch.no_grad()
    def _metrics(self, batch: Any, scores: Tensor) -> dict[str, Tensor]:
        if "attributes" in self.needs:
            errors = (_by_attribute(batch, scores) - batch.attributes).square()
            return {f"error/{name}": error[~error.isnan()] for name, error in zip(batch.names, errors.T, strict=True)}
        good = (batch.step_label if "step_label" in self.needs else batch.desirable) >= 0.5
        return {
            "accuracy": ((scores > 0) == good).float(),
            "reward/chosen": scores[good],
            "reward/rejected": scores[~good],
        }

    def derived(self, prefix: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Margins and roots of means."""
        chosen, rejected = means.get(f"{prefix}reward/chosen"), means.get(f"{prefix}reward/rejected")
        margin = {} if chosen is None or rejected is None else {f"{prefix}reward/margin": chosen - rejected}
        return margin | {name: value.sqrt() for name, value in means.items() if name.startswith(f"{prefix}error/")}


def _ragged(batch: PackedBatch, scores: Tensor) -> Ragged:
    return batch.slot(batch.ragged(scores), 0)


def _by_attribute(batch: Any, scores: Tensor) -> Float[Tensor, "responses attributes"]:
    """Scores with an attribute axis.

    Raises:
        ValueError: the head has another number of outputs than the data has attributes.
    """
    ratings = scores if scores.ndim == 2 else scores[:, None]
    if ratings.shape[1] != len(batch.names):
        raise ValueError(
            f"the head has {ratings.shape[1]} outputs, and the data rates {len(batch.names)} attributes "
            f"({', '.join(batch.names)}): set method.head.outputs={len(batch.names)}"
        )
    return ratings
