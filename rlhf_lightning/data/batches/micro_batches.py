"""Micro-batches by number, each packed when it is requested."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from rlhf_lightning.data.batches.mismatch import Mismatches
from rlhf_lightning.data.batches.packing import local_totals, pack
from rlhf_lightning.data.batches.plan import Plan
from rlhf_lightning.data.tokens.examples import Examples, Groups
from rlhf_lightning.types import PackedBatch, StepTotals, UnpairedBatch

IntArray = NDArray[np.int64]


class LogProbStore(Protocol):
    """A source of cached reference log-probs."""

    def log_probs(self, examples: Examples) -> NDArray[np.float32]:
        """One number for every scored token of the groups, in packing order."""


@dataclass(frozen=True)
class MicroBatch:
    """Groups and denominators of a micro-batch, before it is packed."""

    source: Groups
    chosen: IntArray  #: groups of the source; none: an empty micro-batch
    step: IntArray  #: groups of the whole step
    totals: StepTotals  #: denominators of the step

    def packed(self, kind: str | None = None, store: LogProbStore | None = None) -> PackedBatch:
        """Pack the micro-batch; in place of an empty one, the shortest group of the step is packed and emptied.

        It is of the same step, so that it reaches no weight that the step does not reach, such as another expert's.

        Args:
            kind: of the batch, see ``pack``.
            store: reference log-probs to attach.
        """
        shortest = self.step[[self.source.lengths[self.step].argmin()]]
        examples = self.source.select(self.chosen if len(self.chosen) else shortest)
        cached = None if store is None else store.log_probs(examples)
        batch = pack(examples, kind=kind, totals=self.totals, reference_log_probs=cached)
        return batch if len(self.chosen) else batch.emptied()


class Batches(Dataset[PackedBatch], ABC):
    """A list of micro-batches that are packed when they are requested, here or in a worker process."""

    store: LogProbStore | None = None
    kind: str | None = None  #: of the batches, see ``pack``
    mismatches: Mismatches | None = None  #: of the data set that the batches are from

    def __getitem__(self, number: int) -> PackedBatch:
        batch = self.micro_batch(number).packed(self.kind, self.store)
        if not isinstance(batch, UnpairedBatch) or self.mismatches is None:
            return batch
        return with_mismatched(batch, [part.packed(None, self.store) for part in self.mismatched(number)])

    @abstractmethod
    def micro_batch(self, number: int) -> MicroBatch:
        """Return the groups of a micro-batch and the denominators of its step."""

    @abstractmethod
    def mismatched(self, number: int) -> list[MicroBatch]:
        """Return the mismatched groups in a micro-batch, for the step's estimate of the reference point."""


def with_mismatched(batch: UnpairedBatch, mismatched: Sequence[PackedBatch]) -> UnpairedBatch:
    """Add to the first micro-batch of a step the mismatched rows of this process's whole share of the step."""
    stand_in: Any = batch.stand_in  # of the batch's class
    with_rows = None if stand_in is None else replace(stand_in, mismatched=tuple(mismatched))
    return replace(batch, mismatched=tuple(mismatched), stand_in=with_rows)


@dataclass(frozen=True)
class PlannedBatches(Batches):
    """One process's micro-batches of an epoch: every ``world_size``-th of each step."""

    examples: Examples
    plan: Plan
    accumulate: int
    rank: int
    world_size: int
    store: LogProbStore | None
    kind: str | None = None
    mismatches: Mismatches | None = None

    def micro_batch(self, number: int) -> MicroBatch:
        """The ``number``-th micro-batch of this process."""
        step = number // self.accumulate
        return MicroBatch(self.examples, self._chosen(number), self.plan.groups(step), self.plan.totals(step))

    def mismatched(self, number: int) -> list[MicroBatch]:
        """All of this process's share of the step for its first micro-batch, none for the others."""
        if self.mismatches is None or number % self.accumulate:
            return []
        step = number // self.accumulate
        groups = self.plan.groups(step)
        totals = self.plan.totals(step)._replace(slot_tokens=(int(self.mismatches.slot_tokens[groups].sum()),))
        numbers = range(number, number + self.accumulate)
        return [MicroBatch(self.mismatches, self._chosen(each), groups, totals) for each in numbers]

    def _chosen(self, number: int) -> IntArray:
        return self.plan.micro_batch(number * self.world_size + self.rank)


@dataclass(frozen=True)
class ListedBatches(Batches):
    """Listed micro-batches of an evaluation, which is like one step over the whole data set.

    A token mean is therefore that of the whole set, however it is divided into batches and among processes.
    """

    listed: Sequence[tuple[Groups, IntArray]]
    store: LogProbStore | None
    world_size: int = 1
    kind: str | None = None
    mismatches: Mismatches | None = None

    def micro_batch(self, number: int) -> MicroBatch:
        """The ``number``-th micro-batch."""
        return self._micro_batch(*self.listed[number])

    def mismatched(self, number: int) -> list[MicroBatch]:
        """The prompts of the micro-batch, each with another one's response."""
        assert self.mismatches is not None
        return [self._micro_batch(self.mismatches, self.listed[number][1])]

    def _micro_batch(self, source: Groups, chosen: IntArray) -> MicroBatch:
        totals = local_totals(source)._replace(micro_batches=len(self.listed) * self.world_size)
        return MicroBatch(source, chosen, np.arange(len(source)), totals)


def iterate(batches: Batches, numbers: Sequence[int], workers: int, pin_memory: bool) -> Iterator[PackedBatch]:
    """Yield the numbered batches in order, packed in this process or in ``workers`` others."""
    if workers == 0:
        for number in numbers:
            batch = batches[number]
            yield batch.pin_memory() if pin_memory else batch
        return
    # Without a generator a DataLoader draws its workers' seed from the global one.
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
