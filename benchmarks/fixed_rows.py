"""A reward of token ids and a few rows that both sides of the GRPO comparison are checked on."""

from __future__ import annotations

from collections.abc import Sequence


def reward(ids: Sequence[int]) -> float:
    """Share of even token ids: cheap, and different between samples."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


def responses(prompt: Sequence[int], count: int, length: int) -> list[list[int]]:
    """Responses of given lengths and ids: pieces of the prompt read backwards."""
    backwards = [*reversed(prompt)] * (1 + 2 * length // len(prompt))
    return [backwards[at : at + length - at] for at in range(count)]


def advantages(count: int) -> list[float]:
    """Of those responses: half of them good, half bad, none alike."""
    return [(-1.0) ** at * (1 + at / 10) for at in range(count)]
