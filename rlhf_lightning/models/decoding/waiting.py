"""Rows of a batch that wait for room: prompts are computed when rows whose response has ended make way for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.models.decoding.states import State


@dataclass
class _Started:
    """Prompts that are computed: the first of them, their state before any token, logits of their first tokens."""

    first: int
    state: State
    logits: Tensor


class Waiting:
    """The rows of a batch, the last ones first, for which there was no room yet.

    A prompt of which some rows wait is kept, unless it came when nothing was decoded: then it is computed once more.

    Args:
        prompts: each different.
        repeats: rows of each prompt.
        capacity: rows that may be decoded together when the longest prompt has so many tokens; None: all.
        start: makes the state of some prompts, and the logits of their first tokens.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        repeats: Sequence[int],
        capacity: Callable[[int], int] | None,
        start: Callable[[list[Sequence[int]]], tuple[State, Tensor]],
    ) -> None:
        self.prompts, self.capacity, self.start = prompts, capacity, start
        #: Number of each row's prompt.
        self.prompt = [number for number, count in enumerate(repeats) for _ in range(count)]
        self.count = len(self.prompt)  #: rows that wait, the first ones of the batch
        self._kept: _Started | None = None

    def room(self, active: Sequence[int]) -> int:
        """Rows that can be decoded beside these ones."""
        if not self.count or self.capacity is None:
            return self.count
        longest = max(len(self.prompts[self.prompt[row]]) for row in (*active, self.count - 1))
        return max(0, min(self.count, self.capacity(longest) - len(active)))

    def fill(self, state: State | None, logits: Tensor | None, room: int) -> tuple[State, Tensor, range]:
        """Put waiting rows below those that are decoded: the state, all logits, and which rows came."""
        rows = range(self.count - room, self.count)
        self.count -= room
        numbers = self.prompt[rows.start : rows.stop]
        if state is None or logits is None:
            first = numbers[0]
            state, begun = self.start([*self.prompts[first : numbers[-1] + 1]])
            at = torch.tensor([number - first for number in numbers], device=begun.device)
            state.keep(at)
            return state, begun[at], rows
        kept = self._kept
        earlier = [] if kept is None else [number for number in numbers if number >= kept.first]
        new = numbers[: len(numbers) - len(earlier)]
        if new:
            begun_state, begun = self.start([*self.prompts[new[0] : new[-1] + 1]])
            self._kept = _Started(new[0], begun_state, begun)
        for part, begun_rows in ((self._kept, new), (kept, earlier)):
            if part is not None and begun_rows:
                at = torch.tensor([number - part.first for number in begun_rows], device=logits.device)
                state.join(part.state, at)
                logits = torch.cat([logits, part.logits[at]])
        return state, logits, rows
