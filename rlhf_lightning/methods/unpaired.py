"""Losses on single responses that carry a label: desirable or undesirable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.methods.base import DIAGNOSTIC
from rlhf_lightning.methods.density_ratio import DensityRatio
from rlhf_lightning.methods.observing import ObservingModule
from rlhf_lightning.methods.running import all_reduced
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.sharding import whole_weights
from rlhf_lightning.types import GroupLoss, PackedBatch, SequenceLogProbs, StepOutput, UnpairedBatch

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models


log = logging.getLogger(__name__)

#: Key of the density ratio in a checkpoint.
_DENSITY_RATIO = "density_ratio"


class Unpaired(ObservingModule[UnpairedBatch]):
    """One number a response from any loss of ``rlhf_lightning.losses.unpaired``.

    A loss may ask for ``policy``, ``reference``, ``desirable`` (the labels), ``kl`` (KTO's reference point, from the
    mismatched rows that the first micro-batch of an optimiser step brings), ``running`` (moments of what it observed
    in earlier steps), ``weight`` (one a response) and ``top_k`` (the policy's most likely tokens at the undesirable
    responses).

    Logged as for pairs: ``reward/chosen`` is the mean reward of the desirable responses, ``reward/rejected`` that of
    the undesirable ones, ``reward/margin`` the difference of these two means; a step without one of the labels logs
    none of what it would need. ``share/desirable`` is the share of desirable responses, ``log_ratio/mismatched`` KTO's
    reference point: the mean log-ratio of mismatched rows, at least 0.

    Args: see ``ObservingModule``, and

        density_ratio: gives undesirable responses weights by their prompts, to a loss that asks for ``weight``.

    Raises:
        ValueError: a density ratio for a loss that does not ask for it.
    """

    kind: ClassVar[str] = "unpaired"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"policy", "reference", "desirable", "kl", "running", "weight", "top_k"}
    )

    def __init__(
        self,
        models: Callable[[], Models],
        loss: Callable[..., GroupLoss],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        running_decay: float | None = None,
        density_ratio: DensityRatio | None = None,
        statistics: Sequence[str] = (),
    ) -> None:
        super().__init__(models, loss, optimizer, scheduler, running_decay=running_decay, statistics=statistics)
        if density_ratio is not None and "weight" not in self.needs:
            raise ValueError("method.density_ratio gives weights to a loss that asks for them: choose method=bco_udm")
        self.density_ratio = density_ratio
        #: KTO's reference point of the step at hand, in training (True) and in evaluation (False).
        self._reference_point: dict[bool, Tensor] = {}
        self._whole_validation = False  # True where that of evaluation is computed before its first batch

    def compute(self, batch: UnpairedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of labelled responses."""
        if "kl" in self.needs and batch.mismatched and (self.training or not self._whole_validation):
            self._reference_point[self.training] = self.mismatched_kl(batch.mismatched)
        policy = self.policy_log_probs(batch)
        reference = self.reference_log_probs(batch)
        inputs = self._inputs(batch, policy, reference)
        result = self.loss(**{name: inputs[name]() for name in self.needs}, **batch.loss_options)
        return StepOutput(self.scaled(result.loss, batch), self._diagnostics(batch, policy, reference, result))

    @torch.no_grad()
    def on_validation_epoch_start(self) -> None:
        """One reference point for the whole validation, however its data is cut and dealt to processes."""
        trainer = self.trainer
        loaders = trainer.val_dataloaders
        if "kl" not in self.needs or loaders is None:
            return
        limits = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        each = zip(loaders if isinstance(loaders, list) else [loaders], limits, strict=True)
        batches = (batch for loader, limit in each for batch in islice(loader, int(limit)))
        with trainer.precision_plugin.forward_context():
            point = self.mismatched_kl(part.to(self.device) for batch in batches for part in batch.mismatched)
        self._reference_point[False], self._whole_validation = point, True

    def on_validation_epoch_end(self) -> None:
        """As in the base class."""
        super().on_validation_epoch_end()
        self._whole_validation = False

    @torch.no_grad()
    def mismatched_kl(self, batches: Iterable[PackedBatch]) -> Tensor:
        """KTO's reference point: the mean log-ratio over the mismatched rows of all processes, at least 0.

        It is computed with the weights at the start of the optimiser step, which are those of all its micro-batches.
        A collective call.

        Args:
            batches: this process's share, equally many batches on every process.

        Returns:
            A scalar, in nats.
        """
        sums = torch.zeros(2, dtype=torch.float64, device="cpu" if self.device.type == "mps" else self.device)
        with evaluating(self.policy):
            for batch in batches:
                log_ratio = self._log_ratio(batch.stand_in or batch).sum()[: len(batch)].to(sums)
                sums += torch.stack([log_ratio.sum(), torch.ones_like(log_ratio).sum()])
        total, count = all_reduced(sums)
        point: Tensor = total / count.clamp(min=1)
        return point.clamp(min=0).float().to(self.device)

    def negative(self, batch: UnpairedBatch) -> Tensor:
        """The undesirable responses."""
        return batch.desirable <= 0.5

    def _inputs(
        self, batch: UnpairedBatch, policy: SequenceLogProbs, reference: SequenceLogProbs | None
    ) -> dict[str, Callable[[], Any]]:
        """Functions that make the inputs that a loss may ask for, by name."""
        return {
            "policy": lambda: batch.slot(policy, 0),
            "reference": lambda: None if reference is None else batch.slot(reference, 0),
            "desirable": lambda: batch.desirable,
            "kl": self._kl,
            "running": lambda: None if self.running is None else self.running.moments(),
            "weight": lambda: self._weight(batch),
            "top_k": lambda: policy.top,
        }

    def _weight(self, batch: UnpairedBatch) -> Tensor:
        return torch.ones_like(batch.desirable) if self.density_ratio is None else self.density_ratio(batch)

    def on_fit_start(self) -> None:
        """Fit the density ratio to the prompts of both labels, before the first step and not again after a resume."""
        if self.density_ratio is None or self.density_ratio.token_score is not None:
            return
        examples = getattr(getattr(self.trainer, "datamodule", None), "train_examples", None)
        if examples is None:
            raise ValueError("method.density_ratio needs the data module, which has all prompts: fit with one")
        with whole_weights(self.policy):
            embedding = self.policy.base.get_input_embeddings().weight.detach()
            accuracy = self.density_ratio.fit(examples, embedding)
        log.info("density ratio: %.1f%% of the prompts' labels are predicted from the prompt alone", 100 * accuracy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in the base class, and the density ratio."""
        super().on_save_checkpoint(checkpoint)
        if self.density_ratio is not None and self.density_ratio.token_score is not None:
            checkpoint[_DENSITY_RATIO] = [self.density_ratio.token_score.cpu(), self.density_ratio.intercept]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in the base class, and the density ratio."""
        super().on_load_checkpoint(checkpoint)
        if self.density_ratio is not None and _DENSITY_RATIO in checkpoint:
            self.density_ratio.token_score, self.density_ratio.intercept = checkpoint[_DENSITY_RATIO]

    def _kl(self) -> Tensor:
        if self.training not in self._reference_point:
            raise ValueError(
                "the loss needs mismatched prompts and responses, and the step's first micro-batch has none: take the "
                "batches from the data module (kind unpaired), or choose a loss without them such as "
                "method=apo_zero_unpaired"
            )
        return self._reference_point[self.training]

    @torch.no_grad()
    def _diagnostics(
        self,
        batch: UnpairedBatch,
        policy: SequenceLogProbs,
        reference: SequenceLogProbs | None,
        result: GroupLoss,
    ) -> dict[str, Tensor]:
        values = {
            "group_loss": result.loss,
            "reward": result.reward,
            "log_prob": policy.sum(),
            "length": policy.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            "observed": result.observed,
            "log_ratio": None if reference is None else policy.token - reference.token,
        }
        chosen, rejected = batch.by_label(result.reward)
        named = result.diagnostics | {
            "share/desirable": (batch.desirable > 0.5).float(),
            "reward/chosen": chosen,
            "reward/rejected": rejected,
        }
        if "kl" in self.needs:
            named["log_ratio/mismatched"] = self._kl()
        values |= {DIAGNOSTIC + name: value for name, value in named.items()}
        return {name: value.detach() for name, value in values.items() if value is not None}

    def derived(self, prefix: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The margin of the means; there are no pairs to take margins of."""
        chosen, rejected = means.get(f"{prefix}reward/chosen"), means.get(f"{prefix}reward/rejected")
        return {} if chosen is None or rejected is None else {f"{prefix}reward/margin": chosen - rejected}
