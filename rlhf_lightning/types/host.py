"""Integers of a packed batch that the host computes with, so that it never waits for a device to read them."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_lightning.ops.attention import Segments


@dataclass(frozen=True)
class HostLayout:
    """Sizes and spans of a batch. They are taken before the batch leaves the host and travel with it."""

    segments: Segments  #: spans of prompts and responses
    response_tokens: tuple[int, ...]  #: scored tokens of each response
    desirable: int = 0  #: responses labelled desirable, where the batch has labels
    engine_tokens: int = 0  #: scored tokens that the batch has an engine's log-prob of

    @property
    def present(self) -> int:
        """Slots that hold a response."""
        return sum(end > start for start, end, _ in self.segments.responses)

    @property
    def row_lengths(self) -> list[int]:
        """Tokens of each response and its prompt: the rows of the padded layout."""
        prompts = self.segments.prompts
        return [prompts[at][1] - prompts[at][0] + end - start for start, end, at in self.segments.responses]

    def slot_tokens(self, slot: int, slots: int) -> int:
        """Scored tokens in one of ``slots`` slots."""
        return sum(self.response_tokens[slot::slots])
