"""Methods that compare whole distributions: of a student and a teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from rlhf_lightning.methods.base import DIAGNOSTIC, STATISTICS, AlignmentModule
from rlhf_lightning.methods.slots import only_slot
from rlhf_lightning.types import (
    ContextBatch,
    MeasuredLoss,
    PackedBatch,
    SequenceLogProbs,
    SequencePredictions,
    StepOutput,
    SupervisedBatch,
)

BatchT = TypeVar("BatchT", bound=PackedBatch)


class Distillation(AlignmentModule[BatchT]):
    """One number a group from a loss of ``rlhf_lightning.losses.distillation``; the reference is the teacher.

    Logged: ``divergence``, nats a token, in addition to what every method logs.

    Args: see ``AlignmentModule``.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"policy", "reference"})

    def _check(self, models: Callable[..., Any]) -> None:
        super()._check(models)
        if getattr(models, "reference", None) == "cached":
            raise ValueError(
                "distillation needs the teacher's whole distributions, and reference=cached keeps log-probs of the "
                "responses only: choose reference=frozen, adapter_off or teacher"
            )

    def views(self, batch: BatchT) -> tuple[PackedBatch, PackedBatch]:
        """The batch as the teacher and as the student sees it; both score the same tokens."""
        return batch, batch

    def compute(self, batch: BatchT) -> StepOutput:
        """Loss and diagnostics of a micro-batch."""
        for_teacher, for_student = self.views(batch)
        teacher = self.teacher_predictions(for_teacher)
        result: MeasuredLoss = self.policy(for_student, inside=partial(self._compared, teacher))
        values: dict[str, Tensor | None] = {"group_loss": result.loss}
        values |= {DIAGNOSTIC + name: value for name, value in result.diagnostics.items()}
        if not self.training:
            policy: SequenceLogProbs = self.policy(for_student, statistics=STATISTICS)
            values |= {"log_prob": policy.sum(), "length": policy.length}
            values |= {"entropy": policy.entropy, "top1": policy.top1}
        named = {name: value.detach() for name, value in values.items() if value is not None}
        return StepOutput(self.scaled(result.loss, batch), named)

    def _compared(self, teacher: SequencePredictions, student: SequencePredictions) -> MeasuredLoss:
        result: MeasuredLoss = self.loss(policy=student, reference=teacher)
        return result

    @torch.no_grad()
    def teacher_predictions(self, batch: PackedBatch) -> SequencePredictions:
        """Predictions of the teacher at the scored tokens; its head's weight stays gathered after its forward pass."""
        predictions: SequencePredictions = self._live_reference(batch, inside=SequencePredictions.detached)
        return predictions


class KnowledgeDistillation(Distillation[SupervisedBatch]):
    """Another model's distributions on given responses: ``reference=teacher``.

    Args: see ``AlignmentModule``.

    Raises:
        ValueError: the teacher would be the policy itself, from which nothing can be learnt.
    """

    kind: ClassVar[str] = "supervised"

    def _check(self, models: Callable[..., Any]) -> None:
        super()._check(models)
        if (kind := getattr(models, "reference", None)) in ("auto", "frozen", "adapter_off"):
            raise ValueError(
                f"with reference={kind} the policy would be its own teacher and have nothing to learn: name another "
                "model with reference=teacher model@reference.source=..."
            )


class ContextDistillation(Distillation[ContextBatch]):
    """The start model behind a context teaches the policy without it; each sees only its own wording of the prompt.

    Args: see ``AlignmentModule``.
    """

    kind: ClassVar[str] = "context"

    def views(self, batch: ContextBatch) -> tuple[PackedBatch, PackedBatch]:
        """The responses behind the context, and without it."""
        return only_slot(batch, 0), only_slot(batch, 1)
