"""Offline value-based methods: a language model with value heads, trained on scored responses, decoded by value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.methods.base import DIAGNOSTIC, STATISTICS, AlignmentModule
from rlhf_lightning.methods.running import RunningMoments
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.critics.value_actor import ValueActor
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.options import Count, NonNegative, PositiveShare, WholeNumber
from rlhf_lightning.types import ActionValues, MeasuredLoss, RankedBatch, SequenceLogProbs, StepOutput

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from rlhf_lightning.models.roles.models import Models


class ValueBased(AlignmentModule[RankedBatch]):
    """One number a response from a loss of ``rlhf_lightning.losses.value``; the scores of the data are returns.

    Returns are standardised over the training data, which the module reads from the trainer's data module when
    training starts; under Fabric call :meth:`standardize` with all scores. The moments and the slowly moving copies of
    the Q heads are in the checkpoint. Responses are decoded by value: :meth:`sample` adds ``beta`` times the advantage
    of each token to its log-prob. An export is the policy without its heads.

    A loss may ask for ``policy``, ``values`` (of the heads) and ``score`` (standardised).

    Args:
        models: see ``AlignmentModule``.
        loss: see ``AlignmentModule``.
        optimizer: see ``AlignmentModule``.
        scheduler: see ``AlignmentModule``.
        target_rate: how far the copies of the Q heads move each time, in (0, 1].
        target_every: optimiser steps between two moves, >= 1.
        decoding_beta: weight of the advantage in decoding, in nats a standard deviation of the returns; 0: the policy.
        decoding_top_k: most tokens that decoding by value leaves to choose from; 0: all.
        head: what makes the actor with its heads.
        statistics: see ``AlignmentModule``.

    Raises:
        ValueError: an option is out of range.
    """

    kind: ClassVar[str] = "ranked"
    provides: ClassVar[frozenset[str]] = frozenset({"policy", "values", "score"})
    actor: Callable[..., Backbone] = ValueActor

    steps: Tensor  #: optimiser steps taken, 0-dimensional

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., MeasuredLoss],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        target_rate: PositiveShare = 0.001,
        target_every: Count = 5,
        decoding_beta: NonNegative = 1.0,
        decoding_top_k: WholeNumber = 20,
        head: Callable[..., ValueActor] = ValueActor,
        statistics: Sequence[str] = (),
    ) -> None:
        if not 0 < target_rate <= 1 or target_every < 1 or decoding_top_k < 0:
            raise ValueError(
                f"method.target_rate={target_rate} must lie in (0, 1], method.target_every={target_every} be at least "
                f"1 and method.decoding_top_k={decoding_top_k} at least 0"
            )
        super().__init__(models, loss, optimizer, scheduler, statistics=statistics)
        self.actor = head
        self.target_rate, self.target_every = target_rate, target_every
        self.decoding_beta, self.decoding_top_k = decoding_beta, decoding_top_k
        self.returns = RunningMoments()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def setup(self, stage: str) -> None:
        """Take the moments of the returns from the training data; a checkpoint's replace them."""
        super().setup(stage)
        examples = getattr(getattr(self.trainer, "datamodule", None), "train_examples", None)
        if stage == "fit" and examples is not None and not self.returns.count:
            self.standardize(torch.tensor(examples.numbers["score"]))

    def standardize(self, scores: Tensor) -> None:
        """Set the moments of the returns; a collective call.

        Args:
            scores: of all responses of the training data, of any shape; nan where a slot is empty.

        Raises:
            ValueError: all scores are equal, so that there is nothing to learn from them.
        """
        flat = scores.flatten().float()
        self.returns.update(flat[~flat.isnan()])
        if not self.returns.variance > 0:
            raise ValueError("every response of the training data has the same score: values have nothing to learn")

    def compute(self, batch: RankedBatch) -> StepOutput:
        """Loss and diagnostics of a micro-batch of scored responses."""
        statistics = self.statistics if self.training else STATISTICS
        policy, values = self.policy(batch, values=True, statistics=statistics)
        result: MeasuredLoss = self.loss(**{name: self._inputs(batch, policy, values)[name]() for name in self.needs})
        # A list of K responses is a group; slots are averaged, so that the mean over groups stays the token mean.
        group_loss = result.loss.view(len(batch), batch.slots).mean(1)
        named = {
            "group_loss": group_loss,
            "log_prob": policy.sum(),
            "length": policy.length,
            "entropy": policy.entropy,
            "top1": policy.top1,
            **{DIAGNOSTIC + name: value for name, value in result.diagnostics.items()},
        }
        kept = {name: value.detach() for name, value in named.items() if value is not None}
        return StepOutput(self.scaled(group_loss, batch), kept)

    def _inputs(
        self, batch: RankedBatch, policy: SequenceLogProbs, values: ActionValues
    ) -> dict[str, Callable[[], Any]]:
        return {"policy": lambda: policy, "values": lambda: values, "score": lambda: self._standardized(batch.score)}

    def _standardized(self, score: Tensor) -> Tensor:
        moments = self.returns.moments()
        if not moments.count:
            raise ValueError(
                "the returns are not standardised: train with a Trainer and its data module, or call "
                "module.standardize(scores) with the scores of all training responses"
            )
        return (score - moments.mean) / moments.std

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step; after every few of them the copies of the Q heads follow."""
        super().optimizer_step(*args, **kwargs)
        self.follow()

    def follow(self) -> None:
        """Count an optimiser step and move the copies of the Q heads when it is time; for loops without a Trainer."""
        self.steps += 1
        if self.steps % self.target_every == 0:
            self.policy.sync_targets(self.target_rate)

    def sample(
        self, prompts: Sequence[Sequence[int]], *, beta: float | None = None, top_k: int | None = None, **options: Any
    ) -> list[list[int]]:
        """One response to each prompt, decoded by value; a collective call.

        Args:
            prompts: token ids.
            beta: weight of the advantage; 0 samples from the policy; None: ``decoding_beta``.
            top_k: most tokens to choose from; None: ``decoding_top_k``.
            options: of ``models.decoding.generation.generate``.
        """
        beta = self.decoding_beta if beta is None else beta
        top_k = self.decoding_top_k if top_k is None else top_k
        with self.policy.guided(beta, top_k) if beta else nullcontext() as processor:
            return generate(self.policy, prompts, processor=processor, **options)
