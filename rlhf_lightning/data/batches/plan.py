"""The plan of an epoch, the groups of each micro-batch: a pure function of the lengths, the seed and the epoch.

A step is planned before it is cut, so its denominators are exact (``StepTotals``) and training does not depend on how
many processes or accumulated micro-batches share it. ``M`` below is ``accumulate_grad_batches`` x processes.

* Mode A, ``batch_size``: a step holds that many groups, the same ones whatever M is; its M micro-batches get about
  equally many tokens (longest group first, each to the lightest micro-batch).
* Mode B, ``max_tokens``: a micro-batch is a bin of at most that many tokens and a step is M bins. The number of bins is
  the same in every epoch, so a loader has one length and a schedule one total.

Nothing is dropped. Mode A: a last step with fewer than ``batch_size`` groups is kept, with its exact totals, so the
number of steps and the groups of each are the same for every M. Mode B: a step *is* M bins, so the steps depend on M,
but not on how it is divided into processes and accumulation; bins are split until M divides their number. Where the
last step has fewer groups than M, its other micro-batches are empty: every process takes part in them and they
contribute nothing (``PackedBatch.emptied``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.data.batches import bins
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.types import StepTotals

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ProcessShare:
    """Part of every step that is this process's."""

    accumulate: int = 1  #: micro-batches that each process accumulates for an optimiser step
    rank: int = 0
    world_size: int = 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimiser step over all processes."""
        return self.accumulate * self.world_size


@dataclass(frozen=True)
class Batching:
    """Sizes, order and layout of batches. Exactly one of ``batch_size`` and ``max_tokens`` is set.

    Attributes:
        batch_size: groups of an optimiser step, over all processes.
        max_tokens: token budget of a micro-batch: its packed length or, with ``padded``, its padded size.
        seed: of the shuffle; the order of an epoch is a function of (seed, epoch).
        shuffle: whether the order changes from epoch to epoch.
        bucket: steps of similar length are made out of windows of this many steps; 1: no bucketing. For the padded
            backend, where a short row next to a long one is waste (transformers' ``group_by_length`` uses 50).
        padded: micro-batches are rectangles: a budget counts rows times the longest row.
    """

    batch_size: int | None = None
    max_tokens: int | None = None
    seed: int = 0
    shuffle: bool = True
    bucket: int = 1
    padded: bool = False

    def __post_init__(self) -> None:
        if (self.batch_size is None) == (self.max_tokens is None):
            raise ValueError(
                f"set one of data.batch_size ({self.batch_size}) and data.max_tokens ({self.max_tokens}), and the "
                "other to null: a step is either a number of groups or micro-batches of a token budget"
            )
        for name in ("batch_size", "max_tokens", "bucket"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name}={value} must be at least 1")


@dataclass(frozen=True)
class Plan:
    """An epoch: step ``s`` consists of the micro-batches ``s * M`` .. ``s * M + M - 1``."""

    order: IntArray  #: (groups,) micro-batch after micro-batch
    cuts: IntArray  #: (steps * M + 1,) micro-batch m is order[cuts[m] : cuts[m + 1]]; it may be empty in the last step
    micro_batches: int  #: M
    tokens: IntArray  #: (steps * M,) tokens of each micro-batch, padding included when padded
    slot_tokens: IntArray  #: (steps, slots) scored tokens of each step
    capacity: int | None  #: max_tokens

    def __len__(self) -> int:
        """Optimiser steps."""
        return len(self.tokens) // self.micro_batches

    def micro_batch(self, number: int) -> IntArray:
        """The groups of a micro-batch; none in the empty micro-batches of a short last step."""
        return self.order[self.cuts[number] : self.cuts[number + 1]]

    def groups(self, step: int) -> IntArray:
        """The groups of a step."""
        first = step * self.micro_batches
        return self.order[self.cuts[first] : self.cuts[first + self.micro_batches]]

    def totals(self, step: int) -> StepTotals:
        """Exact denominators of a step."""
        groups = len(self.groups(step))
        return StepTotals(groups, tuple(self.slot_tokens[step].tolist()), self.micro_batches)

    @property
    def fill(self) -> float:
        """Tokens over capacity: the budget in mode B; in mode A M times each step's largest micro-batch."""
        if self.capacity is not None:
            return float(self.tokens.sum() / (len(self.tokens) * self.capacity))
        steps = self.tokens.reshape(-1, self.micro_batches)
        return float(steps.sum() / (steps.max(axis=1).sum() * self.micro_batches))


def check_budget(lengths: IntArray, batching: Batching, name: Callable[[int], str] = str) -> None:
    """Raise DataError with the first few rows when single groups exceed ``max_tokens``.

    Args:
        lengths: tokens of each group, (groups,).
        batching: the budget.
        name: "file:row" of a group.
    """
    if batching.max_tokens is None:
        return
    over = np.flatnonzero(lengths > batching.max_tokens)
    if len(over):
        rows = ", ".join(f"{name(int(i))} ({int(lengths[i])} tokens)" for i in over[:5])
        raise DataError(
            f"{len(over)} rows are longer than data.max_tokens={batching.max_tokens}: {rows}. Raise data.max_tokens to "
            f"at least {int(lengths.max())}, or bound the rows with data.spec.max_length"
        )


def plan_epoch(
    lengths: IntArray,
    slot_tokens: NDArray[np.integer],
    batching: Batching,
    *,
    micro_batches: int = 1,
    epoch: int = 0,
    name: Callable[[int], str] = str,
) -> Plan:
    """Plan an epoch. Every process that calls this with the same arguments gets the same plan.

    Args:
        lengths: tokens of each group in a batch, (groups,).
        slot_tokens: scored tokens of each response, (groups, slots).
        batching: mode, sizes, seed.
        micro_batches: M, accumulate_grad_batches x processes.
        epoch: from 0.
        name: "file:row" of a group, for errors.

    Raises:
        DataError: no groups, or a group longer than ``max_tokens``.
        ValueError: ``batch_size`` below M.
    """
    if not len(lengths):
        raise DataError("there are no groups to make steps of")
    rng = np.random.default_rng(np.random.SeedSequence([batching.seed, epoch]))
    if batching.batch_size is not None:
        order, sizes = _plan_groups(lengths, batching, micro_batches, rng)
    else:
        check_budget(lengths, batching, name)
        order, sizes = _plan_tokens(lengths, batching, micro_batches, rng)
    return _planned(order, sizes, lengths, slot_tokens, micro_batches, batching)


def plan_steps(
    lengths: IntArray,
    slot_tokens: NDArray[np.integer],
    batching: Batching,
    *,
    steps: int,
    micro_batches: int = 1,
    epoch: int = 0,
) -> Plan:
    """Plan a fixed number of steps for any number of groups: they have equally many groups, or one less.

    With ``steps * batch_size`` groups it is the plan of :func:`plan_epoch`; with fewer groups some are empty.

    Args:
        lengths: tokens of each group in a batch, (groups,).
        slot_tokens: scored tokens of each response, (groups, slots).
        batching: seed and layout; its sizes are not read.
        steps: optimiser steps.
        micro_batches: M, accumulate_grad_batches x processes.
        epoch: from 0.
    """
    rng = np.random.default_rng(np.random.SeedSequence([batching.seed, epoch]))
    parts = np.array_split(rng.permutation(len(lengths)), steps)
    pieces = [_split(part[None, :], lengths, micro_batches) for part in parts]
    order, sizes = (np.concatenate([piece[at] for piece in pieces]) for at in (0, 1))
    return _planned(order, sizes, lengths, slot_tokens, micro_batches, batching)


def _planned(
    order: IntArray,
    sizes: IntArray,
    lengths: IntArray,
    slot_tokens: NDArray[np.integer],
    micro_batches: int,
    batching: Batching,
) -> Plan:
    """The plan of some micro-batches, with the tokens of each of them and of each step."""
    cuts = np.concatenate([[0], np.cumsum(sizes)])
    filled, tokens = sizes > 0, np.zeros_like(sizes)
    largest_or_sum = np.maximum if batching.padded else np.add
    if filled.any():
        tokens[filled] = largest_or_sum.reduceat(lengths[order], cuts[:-1][filled])
    tokens = tokens * sizes if batching.padded else tokens
    ahead = np.concatenate([np.zeros((1, slot_tokens.shape[1]), np.int64), slot_tokens[order].cumsum(0, np.int64)])
    step_slots = np.diff(ahead[cuts[::micro_batches]], axis=0)
    return Plan(order, cuts, micro_batches, tokens, step_slots, batching.max_tokens)


def _plan_groups(
    lengths: IntArray, batching: Batching, parts: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Mode A: the order of the groups and the size of each micro-batch."""
    size = batching.batch_size or 0
    if size < parts:
        raise ValueError(
            f"data.batch_size={size} groups a step cannot be split into {parts} micro-batches "
            "(accumulate_grad_batches x devices); raise data.batch_size or lower the others"
        )
    count = len(lengths)
    order = rng.permutation(count) if batching.shuffle else np.arange(count)
    full = count // size
    steps: NDArray[np.int64] = order[: full * size].reshape(full, size)
    rest: NDArray[np.int64] = order[full * size :]
    if batching.bucket > 1:
        steps = _bucketed(steps, lengths, batching, rng)
    pieces: list[tuple[IntArray, IntArray]] = []
    if len(steps):
        pieces.append(_split(steps, lengths, parts))
    if len(rest):
        pieces.append(_split(rest[None, :], lengths, parts))
    return np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])


def _bucketed(steps: IntArray, lengths: IntArray, batching: Batching, rng: np.random.Generator) -> IntArray:
    """Steps of similar length: sort each window of ``bucket`` steps by length, then shuffle its steps."""
    size = steps.shape[1]
    windows = []
    for start in range(0, len(steps), batching.bucket):
        groups = steps[start : start + batching.bucket].ravel()
        window = groups[np.argsort(lengths[groups], kind="stable")].reshape(-1, size)
        windows.append(rng.permutation(window) if batching.shuffle else window)
    return np.concatenate(windows) if windows else steps


def _split(steps: IntArray, lengths: IntArray, parts: int) -> tuple[IntArray, IntArray]:
    """Cut equally large steps into ``parts`` micro-batches of about equally many tokens, none empty where it can be.

    Longest processing time first, for all steps at once: the j-th longest group of every step goes to that step's
    lightest micro-batch.

    Args:
        steps: groups of each step, (steps, size).
        lengths: tokens of every group of the data set.
        parts: micro-batches a step.

    Returns:
        The groups, micro-batch after micro-batch, and the size of each micro-batch, (steps * parts,).
    """
    count, size = steps.shape
    if parts == 1:
        return steps.ravel(), np.full(count, size)
    step_lengths = lengths[steps]
    longest = np.argsort(-step_lengths, axis=1, kind="stable")
    every = np.arange(count)
    load = np.zeros((count, parts), dtype=np.int64)
    part = np.empty((count, size), dtype=np.int64)
    for rank in range(size):
        group = longest[:, rank]
        lightest = load.argmin(axis=1)
        part[every, group] = lightest
        load[every, lightest] += step_lengths[every, group]
    by_part = np.argsort(part, axis=1, kind="stable")
    sizes = np.bincount((part + every[:, None] * parts).ravel(), minlength=count * parts)
    return np.take_along_axis(steps, by_part, axis=1).ravel(), sizes


def _plan_tokens(
    lengths: IntArray, batching: Batching, parts: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Mode B: the order of the groups and the size of each micro-batch."""
    capacity = batching.max_tokens or 0
    count = bins.target(lengths, capacity, parts, padded=batching.padded)
    empty = max(count - len(lengths), 0)
    count -= empty
    window = max(batching.bucket * parts * len(lengths) // count, 1)
    rng_or_none = rng if batching.shuffle else None
    micro = bins.fill(lengths, capacity, count, padded=batching.padded, window=window, rng=rng_or_none)
    micro = bins.resize(micro, lengths, count)
    if batching.shuffle:
        micro = [micro[i] for i in rng.permutation(len(micro))]
    return np.concatenate(micro), np.array([len(groups) for groups in micro] + [0] * empty)
