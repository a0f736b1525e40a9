"""The part of a method that trains a scalar head, the same for pairs, lists, labels and steps."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.chat_templates import TrainedTemplate, exported_tokenizer
from rlhf_lightning.losses.options import takes
from rlhf_lightning.methods.base import DIAGNOSTIC, AlignmentModule, BatchT
from rlhf_lightning.methods.optional import check_inputs
from rlhf_lightning.methods.running import all_reduced
from rlhf_lightning.methods.tracking import ScoreStatistics
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.export.classification import check_padding, check_scorer_export, export_scorer
from rlhf_lightning.models.export.policy import Form
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.types import PackedBatch, SequenceLogProbs, StepOutput

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models

log = logging.getLogger(__name__)

#: What is done to scores once a model is trained; see :class:`ScoringModule`.
Normalize = Literal["none", "standard", "demonstrations", "scale"]
#: Key of the measured mean and standard deviation in a checkpoint.
NORMALIZATION = "score_normalization"


class ScoringModule(AlignmentModule[BatchT]):
    """A scorer and a loss on its numbers.

    A subclass names the data (``kind``), what it can give to a loss (``provides``, ``inputs``) and what it reports of a
    batch (``report``). What a loss can do without (an input with a default) is None where a batch does not have it.

    Logged beside the loss's own diagnostics: ``reward/mean``, ``reward/std``, ``reward/min``, ``reward/max`` and
    ``reward/length_correlation`` (Pearson, with the number of scored tokens) over the responses of a step or pass.

    Args:
        models: see ``AlignmentModule``; a reference is neither needed nor used.
        loss: see ``AlignmentModule``.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        head: makes the scorer; a partial of :class:`~rlhf_lightning.models.scorers.scorer.Scorer`. A loss that asks for
            log-probs sets its ``language_model``.
        normalize: what the callback ``ScoreNormalizer`` measures when training ends. Scores are then shifted and
            divided wherever the model is used as a reward, never in training. ``standard``: mean 0 and standard
            deviation 1 over all responses; ``demonstrations``: the first response of each group (the chosen one) scores
            0 on average, as InstructGPT does before RL; ``scale``: only the division, for costs, whose zero means
            something.

    Raises:
        ValueError: see ``AlignmentModule``; or an unknown ``normalize``.
    """

    actor: Callable[..., Backbone] = Scorer
    sign: ClassVar[int] = 1  #: -1 where a high score is bad, as a cost is
    exported: int | None = 1  #: outputs of the head that are exported, from the first; None: all

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., Any],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        head: Callable[..., Scorer] = Scorer,
        normalize: Normalize = "none",
    ) -> None:
        super().__init__(models, loss, optimizer, scheduler)
        if normalize not in ("none", "standard", "demonstrations", "scale"):
            raise ValueError(f"method.normalize={normalize!r} is not none, standard, demonstrations or scale")
        self.normalize, self.takes = normalize, takes(loss)
        weight = getattr(loss, "keywords", {}).get("lm_weight", 0)
        self.language_model = "policy" in self.needs or bool(weight)
        self.actor = partial(head, language_model=True) if self.language_model else head
        self.unsaved = False  #: True where something was measured that no checkpoint holds
        self._spread = {"train/": ScoreStatistics(), "val/": ScoreStatistics()}

    def setup(self, stage: str) -> None:
        """As in the base class; refuse data without what the loss asks of it before any weight loads."""
        super().setup(stage)
        check_inputs(getattr(self.trainer, "datamodule", None), self.needs, stage)

    def configure_model(self) -> None:
        """Load the models; refuse a tokenizer whose padding would hide where scores are read."""
        if self.policy is not None:
            return
        super().configure_model()
        if self.tokenizer is not None:
            check_padding(self.tokenizer)
        origin = getattr(self.policy, "head_origin", None)
        log.info("%-9s %s", "head", "new: its weights are drawn" if origin is None else f"that of {origin}")

    # Computing

    def compute(self, batch: BatchT) -> StepOutput:
        """Loss and diagnostics of a micro-batch."""
        scores, log_probs = self.scores(batch)
        inputs = self.inputs(batch, scores, log_probs)
        result = self.loss(**{name: make() for name, make in inputs.items() if name in self.takes})
        return StepOutput(self.scaled(result.loss, batch), self._diagnostics(batch, result))

    def scores(self, batch: PackedBatch) -> tuple[Tensor, SequenceLogProbs | None]:
        """Scores of the responses, or of the scored tokens where the loss compares those; and log-probs if it asks."""
        at = "scored" if self.takes & {"token_reward", "step_reward"} else "last"
        if not self.language_model:
            return self.policy(batch, at), None
        scores, log_probs = self.policy(batch, at, log_probs=True)
        return scores, log_probs

    @abstractmethod
    def inputs(self, batch: BatchT, scores: Tensor, log_probs: SequenceLogProbs | None) -> dict[str, Callable[[], Any]]:
        """Functions that make the inputs that a loss may ask for, by name."""

    @abstractmethod
    def report(self, batch: BatchT, result: Any) -> dict[str, Tensor]:
        """Numbers of a batch for callbacks; with ``response_reward`` and ``response_length`` for the statistics."""

    @torch.no_grad()
    def _diagnostics(self, batch: BatchT, result: Any) -> dict[str, Tensor]:
        values = {"group_loss": result.loss, **self.report(batch, result)}
        values |= {DIAGNOSTIC + name: value for name, value in result.diagnostics.items()}
        return {name: value.detach() for name, value in values.items()}

    # Lightning's hooks

    def training_step(self, batch: BatchT, batch_idx: int) -> dict[str, Tensor]:
        """As in the base class, and statistics of the scores."""
        outputs = super().training_step(batch, batch_idx)
        self._spread["train/"].add(outputs["response_reward"], outputs["response_length"])
        return outputs

    def validation_step(self, batch: BatchT, batch_idx: int) -> dict[str, Tensor]:
        """As in the base class, and statistics of the scores."""
        outputs = super().validation_step(batch, batch_idx)
        self._spread["val/"].add(outputs["response_reward"], outputs["response_length"])
        return outputs

    def derived(self, prefix: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean, deviation, extremes and length correlation of the scores; a collective call."""
        return {f"{prefix}reward/{name}": value for name, value in self._spread[prefix].pop(self._reduce).items()}

    def _reduce(self, values: Tensor, operation: str) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op=operation)

    # Normalisation

    @torch.no_grad()
    def measure(self, batches: Iterable[PackedBatch]) -> tuple[float, float]:
        """Measure and set the normalisation that ``normalize`` asks for; a collective call.

        Args:
            batches: this process's share of the responses; sharded weights need equally many on every process.

        Returns:
            Mean that is subtracted and standard deviation that scores are divided by.
        """
        sums = torch.zeros(3, dtype=torch.float64)
        with evaluating(self.policy):
            for batch in batches:
                scores = self.policy((batch.stand_in or batch).to(self.device))
                scores, chosen = scores.reshape(len(scores), -1)[: len(batch.response_span), 0], batch.present
                if self.normalize == "demonstrations":
                    chosen = chosen & (torch.arange(len(chosen), device=chosen.device) % batch.slots == 0)
                kept = scores[chosen].double().cpu()
                sums += torch.stack([torch.tensor(float(len(kept))).double(), kept.sum(), kept.square().sum()])
        count, total, squares = all_reduced(sums.to(self.device, torch.float64)).tolist()
        mean = total / max(count, 1)
        std = max(squares / max(count, 1) - mean**2, 0.0) ** 0.5
        shift = 0.0 if self.normalize in ("none", "scale") else mean
        scale = std if self.normalize in ("standard", "scale") and std > 0 else 1.0
        self.policy.mean, self.policy.std, self.unsaved = shift, scale, True
        return shift, scale

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in the base class, with the normalisation."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[NORMALIZATION] = {"mean": self.policy.mean, "std": self.policy.std}
        self.unsaved = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in the base class, with the normalisation."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(NORMALIZATION, {"mean": 0.0, "std": 1.0})
        self.policy.mean, self.policy.std = saved["mean"], saved["std"]

    def check_export(self, form: Form = "auto") -> None:
        """As in the base class, of a sequence-classification folder."""
        check_scorer_export(self.policy, self.tokenizer, form)

    def export(self, folder: str | Path, form: Form = "auto", template: TrainedTemplate | None = None) -> Path:
        """Write a sequence-classification folder, or an adapter for one; a collective call.

        The chat template beside the weights ends conversations where the score is read; steps have no such end.
        """
        at_end = "step_reward" not in self.takes
        tokenizer = exported_tokenizer(self.tokenizer, template, ends_at_score=at_end)
        with self.evaluation_weights():
            return export_scorer(self.policy, tokenizer, folder, form=form, outputs=self.exported)
