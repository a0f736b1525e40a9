"""Exchange of a round's samples between processes: numbers everywhere, tokens and texts with one process.

A process keeps the tokens, log-probs and columns of what it drew. The others have an outline: scores, lengths, ends of
responses, and the facts that a lesson reads. What a lesson trains on is fetched as plain tensors, and a file is written
a few groups at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from rlhf_lightning.rounds.processes import gathered, world_size
from rlhf_lightning.types import Remote, ScoredGroup

#: Groups of one message to the process that writes a file.
PIECE = 64
#: Numbers of one message on a device.
MESSAGE = 1 << 22

Facts = Callable[[Any], dict[str, list[int]]]


def announced(local_groups: Sequence[ScoredGroup], facts: Facts) -> list[list[ScoredGroup]]:
    """The groups of every process, by rank: this process's own, and outlines of the others'; a collective call.

    Args:
        local_groups: that this process drew or read.
        facts: what else the others need of a group.
    """
    if world_size() == 1:
        return [list(local_groups)]
    rank = dist.get_rank()
    for one in local_groups:
        one.holder, one.facts = rank, facts(one.group)
    shares = gathered([outline(one) for one in local_groups])
    shares[rank] = list(local_groups)
    return shares


def outline(entry: ScoredGroup) -> ScoredGroup:
    """A group without its tokens, log-probs and columns."""
    group = entry.group
    samples = [replace(one, ids=Remote(len(one.ids)), log_probs=Remote(len(one.log_probs))) for one in group.samples]
    prompt, steps = Remote(len(group.prompt)), [array("d", row) for row in entry.steps]
    return replace(entry, group=replace(group, prompt=prompt, samples=samples, columns={}), steps=steps)


def dealt(groups: Mapping[int, ScoredGroup]) -> list[ScoredGroup]:
    """This process's share of groups that the first process has read; a collective call.

    Args:
        groups: by position; on the other processes none.
    """
    count = world_size()
    if count == 1:
        return [*groups.values()]
    local_groups: list[Any] = [None]
    values = [*groups.values()]
    shares = None if dist.get_rank() else [values[rank::count] for rank in range(count)]
    dist.scatter_object_list(local_groups, shares)
    return cast("list[ScoredGroup]", local_groups[0])


@dataclass(frozen=True)
class Fetch:
    """Fetches tokens and log-probs of some samples from the processes that hold them, as int32 and float32.

    Attributes:
        device: that tensors have to be on to be exchanged.
    """

    device: torch.device

    def __call__(self, groups: Sequence[ScoredGroup], wanted: Mapping[int, Collection[int]]) -> None:
        """Complete groups in place; a collective call.

        Args:
            groups: the same on every process.
            wanted: the samples that are needed, by the number of their group, whose prompt comes along.
        """
        count = world_size()
        for holder in range(count if count > 1 else 0):
            sent = [(groups[at], sorted(wanted[at])) for at in sorted(wanted) if groups[at].holder == holder]
            ids = [one.group.prompt for one, _ in sent]
            ids += [one.group.samples[at].ids for one, samples in sent for at in samples]
            log_probs = [one.group.samples[at].log_probs for one, samples in sent for at in samples]
            tokens = iter(self._sent(ids, holder, torch.int32))
            values = iter(self._sent(log_probs, holder, torch.float32))
            if holder == dist.get_rank():
                continue
            for (one, _), prompt in zip(sent, [next(tokens) for _ in sent], strict=True):
                one.group = replace(one.group, prompt=prompt, samples=[*one.group.samples])
            for one, samples in sent:
                for at in samples:
                    one.group.samples[at] = replace(one.group.samples[at], ids=next(tokens), log_probs=next(values))

    def _sent(self, rows: Sequence[Sequence[Any]], holder: int, dtype: torch.dtype) -> list[array[Any]]:
        """The holder's rows, of which the other processes know the lengths; itself it gets none back."""
        local, total = holder == dist.get_rank(), sum(map(len, rows))
        whole = torch.empty(total, dtype=dtype)
        if local:
            whole = torch.from_numpy(np.fromiter((x for row in rows for x in row), whole.numpy().dtype, count=total))
        for part in torch.split(whole, MESSAGE) if total else ():
            message = part.to(self.device)
            dist.broadcast(message, src=holder)
            if not local:
                part.copy_(message)
        code = "f" if dtype.is_floating_point else "i"
        parts = () if local else torch.split(whole, [len(row) for row in rows])
        return [array(code, part.numpy().tobytes()) for part in parts]


@contextmanager
def collected(drawn: Sequence[ScoredGroup]) -> Iterator[Iterator[ScoredGroup]]:
    """Every group with its tokens, in order, on the first process; none on the others. A collective context.

    The first process receives a few groups at a time. What it does not read is received when the context ends, so that
    the others never wait for it.
    """
    pieces = _pieces(drawn)
    try:
        yield pieces
    finally:
        for _ in pieces:
            pass


def _pieces(drawn: Sequence[ScoredGroup]) -> Iterator[ScoredGroup]:
    if world_size() == 1:
        yield from drawn
        return
    rank = dist.get_rank()
    for start in range(0, len(drawn), PIECE):
        piece = drawn[start : start + PIECE]
        local_groups = [replace(one, group=replace(one.group, columns={})) for one in piece if one.holder == rank]
        shares: list[Any] | None = None if rank else [None] * dist.get_world_size()
        dist.gather_object([] if not rank else local_groups, shares)
        if shares is not None:
            shares[0] = local_groups
            yield from sorted((one for share in shares for one in share), key=_order(piece))


def _order(piece: Sequence[ScoredGroup]) -> Callable[[ScoredGroup], int]:
    order = {one.position: at for at, one in enumerate(piece)}
    return lambda one: order[one.position]
