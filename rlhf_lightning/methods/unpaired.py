"""Losses on single responses that carry a label: desirable or undesirable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.methods.base import DIAGNOSTIC
from rlhf_lightning.methods.observing import ObservingModule
from rlhf_lightning.methods.running import all_reduced
from rlhf_lightning.models.roles import evaluating
from rlhf_lightning.types import GroupLoss, PackedBatch, SequenceLogProbs, StepOutput, UnpairedBatch

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles import Models


class Unpaired(ObservingModule[UnpairedBatch]):
    """One number a response from any loss of ``rlhf_lightning.losses.unpaired``.

    A loss may ask for ``policy``, ``reference``, ``desirable`` (the labels), ``kl`` (KTO's reference point, from the
    mismatched rows that the first micro-batch of an optimiser step brings), ``running`` (moments of what it observed
    in earlier steps), ``weight`` (one a response) and ``top_k`` (the policy's most likely tokens at the undesirable
    responses).

    Logged as for pairs: ``reward/chosen`` is the mean reward of the desirable responses, ``reward/rejected`` that of
    the undesirable ones, ``reward/margin`` the difference of these two means; a step without one of the labels logs
    none of what it would need. ``share/desirable`` is the share of desirable responses.

    Args: see ``ObservingModule``.
    """

    kind: ClassVar[str] = "unpaired"
    legal: ClassVar[frozenset[str]] = frozenset(
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
        statistics: Sequence[str] = (),
    ) -> None:
        super().__init__(models, loss, optimizer, scheduler, running_decay=running_decay, statistics=statistics)
        #: KTO's reference point of the step at hand, in training (True) and in evaluation (False).
        self._reference_point: dict[bool, Tensor] = {}
        self._whole_validation = False  # whether that of evaluation is known before its first batch

    def forward(self, batch: UnpairedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of labelled responses."""
        if "kl" in self.needs and batch.mismatched and (self.training or not self._whole_validation):
            self._reference_point[self.training] = self.mismatched_kl(batch.mismatched)
        policy = self.policy_log_probs(batch)
        reference = self.reference_log_probs(batch)
        inputs = self._inputs(batch, policy, reference)
        result = self.loss(**{name: inputs[name]() for name in self.needs})
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
                log_ratio = self._log_ratio(batch).sum().to(sums)
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
        """How to get each input that a loss may ask for."""
        return {
            "policy": lambda: batch.slot(policy, 0),
            "reference": lambda: None if reference is None else batch.slot(reference, 0),
            "desirable": lambda: batch.desirable,
            "kl": self._kl,
            "running": lambda: None if self.running is None else self.running.moments(),
            "weight": lambda: torch.ones_like(batch.desirable),
            "top_k": lambda: policy.top,
        }

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
        chosen = batch.desirable > 0.5
        named = result.diagnostics | {
            "share/desirable": chosen.float(),
            "reward/chosen": result.reward[chosen],
            "reward/rejected": result.reward[~chosen],
        }
        if "kl" in self.needs:
            named["kl/mismatched"] = self._kl()
        values |= {DIAGNOSTIC + name: value for name, value in named.items()}
        return {name: value.detach() for name, value in values.items() if value is not None}

    def derived(self, prefix: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The margin of the means; there are no pairs to take margins of."""
        chosen, rejected = means.get(f"{prefix}reward/chosen"), means.get(f"{prefix}reward/rejected")
        return {} if chosen is None or rejected is None else {f"{prefix}reward/margin": chosen - rejected}
