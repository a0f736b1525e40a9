"""Loaders: epoch-seeded training batches with a position that can be saved, and fixed lists of batches.

Lightning saves and restores any training iterable that has ``state_dict`` and ``load_state_dict``, but keeps process
0's state only, so the state here is the same on every process: each process computes its batches from the plan. No
global random generator is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.data.batches import bins
from rlhf_lightning.data.batches.loader_position import PositionedLoader, check_state
from rlhf_lightning.data.batches.micro_batches import ListedBatches, LogProbStore, PlannedBatches, iterate
from rlhf_lightning.data.batches.mismatch import Mismatches
from rlhf_lightning.data.batches.plan import Batching, Plan, plan_epoch
from rlhf_lightning.data.tokens.examples import Examples, Groups
from rlhf_lightning.types import PackedBatch

IntArray = NDArray[np.int64]


class EpochLoader(PositionedLoader[PackedBatch]):
    """Training batches of one process. The order is a function of (seed, epoch); the state is (epoch, step)."""

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
        taken: Callable[[], int] | None = None,
    ) -> None:
        """Set up the loader; the first epoch is planned when it is first needed.

        Args:
            examples: the data set, the same on every process.
            batching: sizes, order and layout of batches.
            accumulate: micro-batches that a process accumulates for one optimiser step.
            rank: of this process.
            world_size: number of processes.
            workers: processes that pack ahead; 0 packs here, which takes well under a millisecond a batch.
            pin_memory: hand batches out in pinned memory.
            store: reference log-probs to attach.
            kind: of the batches, see ``pack``.
            mismatches: of the data set; the first micro-batch of a step has those of the whole step.
            taken: number of optimiser steps taken so far, see ``StepPosition``.
        """
        super().__init__(accumulate, taken)
        self.examples, self.batching, self.store = examples, batching, store
        self.kind, self.mismatches = kind, mismatches
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self.workers, self.pin_memory = workers, pin_memory
        self._lengths = examples.padded_lengths if batching.padded else examples.lengths
        self._plan: tuple[tuple[int, int], Plan] | None = None
        self._digest = _digest(examples)

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

    def remaining(self) -> Iterator[PackedBatch]:
        """The batches of the epoch from the position on."""
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
        for batch in iterate(batches, range(self.position.handed_out, len(self)), self.workers, self.pin_memory):
            self.position.advance()  # before the batch is used: a state taken while it is trained on counts it
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch, its finished steps and the options that define a step; plain values, the same on every process."""
        return {**self.saved_position(), "seed": self.batching.seed, "data": self._digest, **self.units()}

    def units(self) -> dict[str, Any]:
        """The options that define a step, under the names that users set."""
        batching = self.batching
        units: dict[str, Any] = {
            "data.batch_size": batching.batch_size,
            "data.max_tokens": batching.max_tokens,
            "data.loading.bucket": batching.bucket,
            "data.loading.padded": batching.padded,
            "data.loading.shuffle": batching.shuffle,
        }
        if batching.max_tokens is not None:  # with data.batch_size a step holds the same groups however it is cut
            units["micro-batches of a step (trainer.accumulate_grad_batches x devices)"] = self.plan.micro_batches
        return units

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where the state was taken. The seed is the state's, so a changed option does not change the order.

        Raises:
            ValueError: another version wrote the state; or it is from the middle of an epoch, and the data or an
                option that defines a step has changed since.
        """
        check_state(state, ("epoch", "step", "seed", "data", "accumulate"))
        self.restore_position(state, state, *([] if state["data"] == self._digest else ["the data has changed"]))
        if state["seed"] != self.batching.seed:
            self.batching = replace(self.batching, seed=state["seed"])


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

    With ``batch_size`` a process has an empty batch only where there are fewer groups than processes.

    Args:
        examples: the data set, read in order.
        batching: ``batch_size`` counts the groups of all processes' batches together, as in training.
        rank: of this process.
        world_size: number of processes.
    """
    lengths = examples.padded_lengths if batching.padded else examples.lengths
    fixed = replace(batching, shuffle=False, bucket=1)
    plan = plan_epoch(lengths, examples.slot_tokens, fixed, micro_batches=world_size, name=examples.row)
    listed = [plan.micro_batch(number) for number in range(len(plan.tokens))]
    if batching.max_tokens is None and len(plan) > 1 and not all(map(len, listed)):
        last = np.concatenate(listed[-2 * world_size :])
        listed[-2 * world_size :] = np.array_split(last, world_size)
    return [(examples, chosen) for chosen in listed[rank::world_size]]


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

    Rows of similar length are together, and the batch that takes most memory comes first. Where the number of processes
    does not divide that of the batches, the shortest ones are repeated; their rows are stored only once.

    Args:
        parts: data sets and the groups of each to score.
        size: groups of a batch.
        max_tokens: tokens of a batch, instead of ``size``; a longer row gets its own batch.
        padded: ``max_tokens`` counts rows times the longest row.
        rank: of this process.
        world_size: number of processes.
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
    """Digest of the lengths of all rows of a data set, which is cheap next to one of its tokens."""
    columns = hashlib.blake2b(examples.lengths.astype("<i8").tobytes(), digest_size=16)
    columns.update(examples.slot_tokens.astype("<i8").tobytes())
    return columns.hexdigest()
