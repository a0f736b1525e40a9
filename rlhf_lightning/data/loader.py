"""Loaders that know their place: epoch-seeded training batches with a position, and fixed lists of batches.

Lightning saves and restores any training iterable that has ``state_dict`` and ``load_state_dict``, but keeps process
0's state only, so the state here is the same on every process: what differs between processes is computed from the
plan. Nothing is drawn from a global generator.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from rlhf_lightning.data import bins
from rlhf_lightning.data.examples import Examples, Groups
from rlhf_lightning.data.mismatch import Mismatches
from rlhf_lightning.data.packing import local_totals, pack
from rlhf_lightning.data.plan import Batching, Plan, plan_epoch
from rlhf_lightning.types import PackedBatch, StepTotals, UnpairedBatch

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]


class LogProbStore(Protocol):
    """Where cached reference log-probs come from."""

    def log_probs(self, examples: Examples) -> NDArray[np.float32]:
        """One number for every scored token of the groups, in packing order."""


class Batches(Dataset[PackedBatch], ABC):
    """A list of micro-batches that are packed when they are asked for, here or in a worker process."""

    store: LogProbStore | None = None
    kind: str | None = None  #: of the batches, see ``pack``
    mismatches: Mismatches | None = None  #: of the data set that the batches are from

    def __getitem__(self, number: int) -> PackedBatch:
        examples, totals = self.groups(number)
        batch = self._packed(examples, totals, self.kind)
        if not isinstance(batch, UnpairedBatch) or self.mismatches is None:
            return batch
        mismatched = [self._packed(examples, totals, None) for examples, totals in self.mismatched(number)]
        return replace(batch, mismatched=tuple(mismatched))

    def _packed(self, examples: Examples, totals: StepTotals, kind: str | None) -> PackedBatch:
        cached = None if self.store is None else self.store.log_probs(examples)
        return pack(examples, kind=kind, totals=totals, reference_log_probs=cached)

    @abstractmethod
    def groups(self, number: int) -> tuple[Examples, StepTotals]:
        """The groups of a micro-batch, and the denominators of the step that it belongs to."""

    @abstractmethod
    def mismatched(self, number: int) -> list[tuple[Examples, StepTotals]]:
        """What a micro-batch brings for its step's estimate: groups with others' responses, and their denominators."""


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

    def groups(self, number: int) -> tuple[Examples, StepTotals]:
        """The ``number``-th micro-batch of this process."""
        return self.examples.select(self._chosen(number)), self.plan.totals(number // self.accumulate)

    def mismatched(self, number: int) -> list[tuple[Examples, StepTotals]]:
        """All of this process's share of the step with its first micro-batch, nothing with the others."""
        if self.mismatches is None or number % self.accumulate:
            return []
        step = number // self.accumulate
        tokens = int(self.mismatches.slot_tokens[self.plan.groups(step)].sum())
        totals = self.plan.totals(step)._replace(slot_tokens=(tokens,))
        share = range(number, number + self.accumulate)
        return [(self.mismatches.select(self._chosen(each)), totals) for each in share]

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

    def groups(self, number: int) -> tuple[Examples, StepTotals]:
        """The ``number``-th micro-batch."""
        examples, chosen = self.listed[number]
        return examples.select(chosen), self._totals(examples)

    def mismatched(self, number: int) -> list[tuple[Examples, StepTotals]]:
        """A micro-batch's own prompts."""
        assert self.mismatches is not None
        return [(self.mismatches.select(self.listed[number][1]), self._totals(self.mismatches))]

    def _totals(self, examples: Groups) -> StepTotals:
        return local_totals(examples)._replace(micro_batches=len(self.listed) * self.world_size)


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


class EpochLoader:
    """Training batches of one process. The order is a function of (seed, epoch); the state is (epoch, position).

    Each new iteration is the next epoch, from its beginning; the first one after ``load_state_dict`` goes on where
    the state was taken. Lightning says which epoch it is in (``set_epoch``), so an epoch that ``limit_train_batches``
    cuts short counts as an epoch, also after a resume.
    """

    def __init__(
        self,
        examples: Examples,
        batching: Batching,
        *,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        store: LogProbStore | None = None,
        kind: str | None = None,
        mismatches: Mismatches | None = None,
    ) -> None:
        """Set up the loader; the first epoch is planned when it is first needed.

        Args:
            examples: the data set, the same on every process.
            batching: how groups become batches.
            accumulate: micro-batches that a process accumulates for one optimiser step.
            rank: this process.
            world_size: processes.
            workers: processes that pack ahead; 0 packs here, which costs well under a millisecond a batch.
            pin_memory: hand batches out in pinned memory.
            store: reference log-probs to attach.
            kind: of the batches, see ``pack``.
            mismatches: of the data set; the first micro-batch of a step brings those of the step.
        """
        self.examples, self.batching, self.store = examples, batching, store
        self.kind, self.mismatches = kind, mismatches
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self.workers, self.pin_memory = workers, pin_memory
        self.epoch = 0
        self.position = 0  #: micro-batches of this epoch handed out
        self._fresh = True  # the next iteration belongs to the epoch and position at hand
        self._lengths = examples.padded_lengths if batching.padded else examples.lengths
        self._plan: tuple[tuple[int, int], Plan] | None = None
        self._digest = _digest(examples)

    @property
    def batch_sampler(self) -> _EpochHook:
        """Where Lightning looks for something that wants to know the epoch."""
        return _EpochHook(self)

    @property
    def plan(self) -> Plan:
        """The plan of the current epoch."""
        key = (self.batching.seed, self.epoch)
        if self._plan is None or self._plan[0] != key:
            micro_batches = self.accumulate * self.world_size
            plan = plan_epoch(
                self._lengths,
                self.examples.slot_tokens,
                self.batching,
                micro_batches=micro_batches,
                epoch=self.epoch,
                name=self.examples.row,
            )
            self._plan = key, plan
        return self._plan[1]

    def __len__(self) -> int:
        """Micro-batches of this process in an epoch, the same in every epoch."""
        return len(self.plan) * self.accumulate

    def __iter__(self) -> Iterator[PackedBatch]:
        # As a generator this runs when the first batch is asked for, after Lightning's set_epoch.
        if not self._fresh:
            self.epoch, self.position = self.epoch + 1, 0
        self._fresh = False
        batches = PlannedBatches(
            self.examples,
            self.plan,
            self.accumulate,
            self.rank,
            self.world_size,
            self.store,
            self.kind,
            self.mismatches,
        )
        for batch in iterate(batches, range(self.position, len(self)), self.workers, self.pin_memory):
            self.position += 1  # before the batch is used: a state taken while it is trained on counts it
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch, or go on with it where it has been begun."""
        if epoch != self.epoch or self.position >= len(self):
            self.epoch, self.position = epoch, 0
        self._fresh = True

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position, with what they are counted in; plain values, the same on every process."""
        finished = self.position >= len(self)
        return {
            "epoch": self.epoch + finished,
            "position": 0 if finished else self.position,
            "seed": self.batching.seed,
            "data": self._digest,
            **self._units(),
        }

    def _units(self) -> dict[str, Any]:
        """The options that give a position its meaning, under the names that users know."""
        batching = self.batching
        units: dict[str, Any] = {
            "data.batch_size": batching.batch_size,
            "data.max_tokens": batching.max_tokens,
            "data.bucket": batching.bucket,
            "data.padded": batching.padded,
            "data.shuffle": batching.shuffle,
            "trainer.accumulate_grad_batches": self.accumulate,
        }
        if batching.max_tokens is not None:  # with data.batch_size a step holds the same groups on any number
            units["number of processes"] = self.world_size
        return units

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken. The seed is the state's, so a changed option does not change the order.

        Raises:
            ValueError: the state is from the middle of an epoch, and the data or an option that decides what a
                position means has changed since.
        """
        changed = [
            f"{name} was {state.get(name)} and is {value}"
            for name, value in self._units().items()
            if state.get(name) != value
        ]
        if state["data"] != self._digest:
            changed.append("the data is another")
        if changed and state["position"]:
            raise ValueError(
                f"cannot go on in the middle of epoch {state['epoch']}: {'; '.join(changed)}. Restore these, or "
                "start anew with ckpt_path=null"
            )
        if changed:
            log.warning(
                "resuming at the beginning of epoch %d with other batches: %s", state["epoch"], "; ".join(changed)
            )
        if state["seed"] != self.batching.seed:
            self.batching = replace(self.batching, seed=state["seed"])
        self.epoch, self.position, self._fresh = state["epoch"], state["position"], True


class _EpochHook:
    """What ``loader.batch_sampler.sampler.set_epoch`` resolves to: torch's protocol for samplers that reshuffle."""

    def __init__(self, loader: EpochLoader) -> None:
        self.sampler = loader


class ListLoader:
    """The same batches in every iteration: evaluation, and the pass that fills the reference cache."""

    def __init__(
        self,
        listed: Sequence[tuple[Groups, IntArray]],
        *,
        workers: int = 0,
        pin_memory: bool = False,
        store: LogProbStore | None = None,
        world_size: int = 1,
        kind: str | None = None,
        mismatches: Mismatches | None = None,
    ) -> None:
        """Keep the list of (data set, groups); see ``evaluation_batches`` and ``reference_batches``."""
        self.batches = ListedBatches(listed, store, world_size, kind, mismatches)
        self.workers, self.pin_memory = workers, pin_memory

    def __len__(self) -> int:
        return len(self.batches.listed)

    def __iter__(self) -> Iterator[PackedBatch]:
        return iterate(self.batches, range(len(self)), self.workers, self.pin_memory)


def evaluation_batches(
    examples: Examples, batching: Batching, *, rank: int = 0, world_size: int = 1
) -> list[tuple[Groups, IntArray]]:
    """This process's batches of an evaluation: every group once over all processes, equally many batches on each.

    Args:
        examples: the data set, read in order.
        batching: ``batch_size`` counts the groups of all processes' batches together, as in training.
        rank: this process.
        world_size: processes.
    """
    lengths = examples.padded_lengths if batching.padded else examples.lengths
    fixed = replace(batching, shuffle=False, bucket=1)
    plan = plan_epoch(lengths, examples.slot_tokens, fixed, micro_batches=world_size, name=examples.row)
    return [(examples, plan.micro_batch(number)) for number in range(rank, len(plan.tokens), world_size)]


def reference_batches(
    parts: Sequence[tuple[Groups, IntArray]],
    *,
    size: int | None = None,
    max_tokens: int | None = None,
    padded: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> list[tuple[Groups, IntArray]]:
    """This process's batches of a pass over some rows, longest first, equally many batches on every process.

    Rows of similar length stand together, and the batch that takes most memory comes first. Where the number of
    batches does not divide, the shortest ones are repeated: their rows are stored once all the same.

    Args:
        parts: data sets and the groups of each to go through.
        size: groups of a batch.
        max_tokens: tokens of a batch, instead of ``size``; a longer row is a batch of its own.
        padded: ``max_tokens`` counts rows times the longest row.
        rank: this process.
        world_size: processes.
    """
    listed: list[tuple[int, Groups, IntArray]] = []
    for examples, groups in parts:
        every = examples.padded_lengths if padded else examples.lengths
        order = groups[np.argsort(-every[groups], kind="stable")]
        if max_tokens is None:
            cut = [order[start : start + (size or 1)] for start in range(0, len(order), size or 1)]
        else:
            cut = bins.next_fit(order, every, max_tokens, padded=padded)
        for chosen in cut:
            tokens = len(chosen) * every[chosen].max() if padded else every[chosen].sum()
            listed.append((int(tokens), examples, chosen))
    listed.sort(key=lambda entry: -entry[0])
    while len(listed) % world_size:
        listed.append(listed[-1])
    return [(examples, chosen) for _, examples, chosen in listed[rank::world_size]]


def _digest(examples: Examples) -> str:
    """Recognises a data set by the lengths of all its rows, which costs nothing beside reading its tokens."""
    columns = hashlib.blake2b(examples.lengths.astype("<i8").tobytes(), digest_size=16)
    columns.update(examples.slot_tokens.astype("<i8").tobytes())
    return columns.hexdigest()
