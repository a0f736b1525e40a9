"""Micro-batches by number: what each of them holds, packed when it is asked for."""

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
    """Where cached reference log-probs come from."""

    def log_probs(self, examples: Examples) -> NDArray[np.float32]:
        """One number for every scored token of the groups, in packing order."""


@dataclass(frozen=True)
class Share:
    """What a micro-batch holds, before it is packed."""

    source: Groups
    chosen: IntArray  #: groups of the source; none: an empty micro-batch
    step: IntArray  #: groups of the whole step
    totals: StepTotals  #: denominators of the step

    def packed(self, kind: str | None = None, store: LogProbStore | None = None) -> PackedBatch:
        """The micro-batch; the shortest group of the step stands in for an empty one.

        Of the same step, so that it reaches no weight that the step does not reach, such as those of another expert.

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
    """A list of micro-batches that are packed when they are asked for, here or in a worker process."""

    store: LogProbStore | None = None
    kind: str | None = None  #: of the batches, see ``pack``
    mismatches: Mismatches | None = None  #: of the data set that the batches are from

    def __getitem__(self, number: int) -> PackedBatch:
        batch = self.share(number).packed(self.kind, self.store)
        if not isinstance(batch, UnpairedBatch) or self.mismatches is None:
            return batch
        return with_mismatched(batch, [share.packed(None, self.store) for share in self.mismatched(number)])

    @abstractmethod
    def share(self, number: int) -> Share:
        """What a micro-batch holds."""

    @abstractmethod
    def mismatched(self, number: int) -> list[Share]:
        """What a micro-batch brings for its step's estimate: groups with others' responses."""


def with_mismatched(batch: UnpairedBatch, mismatched: Sequence[PackedBatch]) -> UnpairedBatch:
    """The first micro-batch of a step with the mismatched rows of this process's whole share of it."""
    stand_in: Any = batch.stand_in  # of the batch's own class
    brought = None if stand_in is None else replace(stand_in, mismatched=tuple(mismatched))
    return replace(batch, mismatched=tuple(mismatched), stand_in=brought)


@dataclass(frozen=True)
class PlannedBatches(Batches):
    """One process's share of an epoch: of every step's micro-batches each process takes every ``world_size``-th."""

    examples: Examples
    plan: Plan
    accumulate: int
    rank: int
    world_size: int
    store: LogProbStore | None
    kind: str | None = None
    mismatches: Mismatches | None = None

    def share(self, number: int) -> Share:
        """The ``number``-th micro-batch of this process."""
        step = number // self.accumulate
        return Share(self.examples, self._chosen(number), self.plan.groups(step), self.plan.totals(step))

    def mismatched(self, number: int) -> list[Share]:
        """All of this process's share of the step with its first micro-batch, nothing with the others."""
        if self.mismatches is None or number % self.accumulate:
            return []
        step = number // self.accumulate
        groups = self.plan.groups(step)
        totals = self.plan.totals(step)._replace(slot_tokens=(int(self.mismatches.slot_tokens[groups].sum()),))
        numbers = range(number, number + self.accumulate)
        return [Share(self.mismatches, self._chosen(each), groups, totals) for each in numbers]

    def _chosen(self, number: int) -> IntArray:
        return self.plan.micro_batch(number * self.world_size + self.rank)


@dataclass(frozen=True)
class ListedBatches(Batches):
    """Given micro-batches of an evaluation, which is like one step over the whole data set.

    A token mean is therefore that of the whole set, however it was cut into batches and dealt to processes.
    """

    listed: Sequence[tuple[Groups, IntArray]]
    store: LogProbStore | None
    world_size: int = 1
    kind: str | None = None
    mismatches: Mismatches | None = None

    def share(self, number: int) -> Share:
        """The ``number``-th micro-batch."""
        return self._share(*self.listed[number])

    def mismatched(self, number: int) -> list[Share]:
        """A micro-batch's own prompts."""
        assert self.mismatches is not None
        return [self._share(self.mismatches, self.listed[number][1])]

    def _share(self, source: Groups, chosen: IntArray) -> Share:
        totals = local_totals(source)._replace(micro_batches=len(self.listed) * self.world_size)
        return Share(source, chosen, np.arange(len(source)), totals)


def iterate(batches: Batches, numbers: Sequence[int], workers: int, pin_memory: bool) -> Iterator[PackedBatch]:
    """Yield the numbered batches in order, packed in this process or in ``workers`` others."""
    if workers == 0:
        for number in numbers:
            batch = batches[number]
            yield batch.pin_memory() if pin_memory else batch
        return
    # Without a generator of its own a DataLoader draws its workers' seed from the global one.
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
