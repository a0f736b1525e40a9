"""Demonstrations or plain text beside the rollouts: what PPO-ptx mixes in (InstructGPT, arXiv:2203.02155)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from rlhf_lightning.data.batches.micro_batches import MicroBatch
from rlhf_lightning.data.batches.plan import Plan, plan_epoch
from rlhf_lightning.types import PackedBatch

if TYPE_CHECKING:
    from rlhf_lightning.data.batches.plan import ProcessShare
    from rlhf_lightning.data.module import AlignmentDataModule
    from rlhf_lightning.data.tokens.examples import Examples


class Demonstrations:
    """Rows of kind ``supervised`` for every optimiser step: a function of the step's number, so it has no state.

    Args:
        data: the rows; its ``batch_size`` (or ``max_tokens``) counts those of an optimiser step.
        process_share: part of every step that is this process's.
    """

    def __init__(self, data: AlignmentDataModule, process_share: ProcessShare) -> None:
        self.data, self.process_share = data, process_share
        self._planned: tuple[int, Plan] | None = None

    @cached_property
    def examples(self) -> Examples:
        """The rows, read when they are first needed."""
        self.data.setup("fit")
        assert self.data.train_examples is not None
        return self.data.train_examples

    @cached_property
    def steps(self) -> int:
        """Optimiser steps that one pass over the rows lasts."""
        return len(self._plan(0))

    def _plan(self, epoch: int) -> Plan:
        if self._planned is None or self._planned[0] != epoch:
            examples, batching = self.examples, self.data.batching
            lengths = examples.padded_lengths if batching.padded else examples.lengths
            plan = plan_epoch(
                lengths,
                examples.slot_tokens,
                batching,
                micro_batches=self.process_share.micro_batches,
                epoch=epoch,
                name=examples.row,
            )
            self._planned = epoch, plan
        return self._planned[1]

    def batch(self, step: int, part: int) -> PackedBatch:
        """Demonstrations of this process's ``part``-th micro-batch of a step.

        Args:
            step: optimiser step, from 0, over all rollouts.
            part: micro-batch of the step, from 0.
        """
        plan, at = self._plan(step // self.steps), step % self.steps
        processes = self.process_share
        number = (at * processes.accumulate + part) * processes.world_size + processes.rank
        share = MicroBatch(self.examples, plan.micro_batch(number), plan.groups(at), plan.totals(at))
        return share.packed("supervised")
