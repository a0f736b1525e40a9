"""Reward models from one response at a time: labels, ratings by attribute, and the steps of a solution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.methods.base import DIAGNOSTIC
from rlhf_lightning.methods.reward import lengths
from rlhf_lightning.methods.scoring import ScoringModule
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.types import AttributesBatch, GroupLoss, PackedBatch, SequenceLogProbs, StepOutput

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models

#: The kind of data that holds what a loss learns from.
_KINDS = {"desirable": "unpaired", "step_label": "steps", "attributes": "attributes"}


class Rating(ScoringModule[PackedBatch]):
    """A scalar head and any loss of ``rlhf_lightning.losses.rating``.

    A loss asks for ``reward`` (one a response) and ``desirable``, for ``step_reward`` and ``step_label``, or for
    ``rating`` and ``attributes``; which of the labels it asks for decides the kind of data.

    Logged: ``accuracy``, ``reward/chosen`` and ``reward/rejected`` (the mean reward of good and of bad responses or
    steps), ``reward/margin`` (their difference), ``error/<attribute>`` (root mean squared error).

    Args:
        models: see ``AlignmentModule``.
        loss: see ``AlignmentModule``.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        head: see ``ScoringModule``. With ``attributes`` it must have one output for every attribute of the data.
        freeze_trunk: train the head alone.

    Raises:
        ValueError: see ``AlignmentModule``; or the loss asks for the labels of no or of two kinds of data.
    """

    kind: ClassVar[str] = "unpaired"  #: of a loss of labels; the loss decides
    provides: ClassVar[frozenset[str]] = frozenset({"reward", "step_reward", "rating", *_KINDS})
    exported = None  # a rating of every attribute

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., GroupLoss],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        head: Callable[..., Scorer] = Scorer,
        freeze_trunk: bool = False,
    ) -> None:
        super().__init__(models, loss, optimizer, scheduler, head=head)
        self.kind = self.kind_with({"loss": loss})  # type: ignore[misc]
        self.freeze_trunk = freeze_trunk

    @classmethod
    def kind_with(cls, options: Mapping[str, Any]) -> str:
        """See ``AlignmentModule``: the labels that the loss asks for decide.

        Raises:
            ValueError: it asks for the labels of no or of two kinds of data.
        """
        labels = sorted(cls.requires(options) & _KINDS.keys())
        if len(labels) != 1:
            raise ValueError(f"method Rating learns from one of {sorted(_KINDS)}; the loss asks for {labels}")
        return _KINDS[labels[0]]

    def configure_model(self) -> None:
        """As in the base class; a frozen trunk keeps no gradients and no optimiser state."""
        if self.policy is not None:
            return
        super().configure_model()
        policy: Any = self.policy
        if self.freeze_trunk:
            policy.model.requires_grad_(False)

    def compute(self, batch: PackedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch; the errors of every attribute are measured here."""
        if not isinstance(batch, AttributesBatch):
            return super().compute(batch)
        scores, _ = self.scores(batch)
        ratings = _by_attribute(batch, scores)
        result: GroupLoss = self.loss(rating=ratings, attributes=batch.attributes)
        errors = (ratings.detach() - batch.attributes).square()
        named = {f"error/{name}": error[~error.isnan()] for name, error in zip(batch.names, errors.T, strict=True)}
        diagnostics = self._diagnostics(batch, result) | {DIAGNOSTIC + name: error for name, error in named.items()}
        return StepOutput(self.scaled(result.loss, batch), diagnostics)

    def inputs(self, batch: Any, scores: Tensor, log_probs: SequenceLogProbs | None) -> dict[str, Callable[[], Any]]:
        """See ``ScoringModule``."""
        return {
            "reward": lambda: scores,
            "desirable": lambda: batch.desirable,
            "step_reward": lambda: batch.slot(batch.ragged(scores), 0),
            "step_label": lambda: batch.step_label,
        }

    def report(self, batch: PackedBatch, result: GroupLoss) -> dict[str, Tensor]:
        """See ``ScoringModule``."""
        return {"response_reward": result.reward, "response_length": lengths(batch)}

    def derived(self, prefix: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """As in the base class; the margin of means, and roots of mean squares."""
        chosen, rejected = means.get(f"{prefix}reward/chosen"), means.get(f"{prefix}reward/rejected")
        margin = {} if chosen is None or rejected is None else {f"{prefix}reward/margin": chosen - rejected}
        roots = {name: value.sqrt() for name, value in means.items() if name.startswith(f"{prefix}error/")}
        return super().derived(prefix, means) | margin | roots


def _by_attribute(batch: AttributesBatch, scores: Tensor) -> Float[Tensor, "responses attributes"]:
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
