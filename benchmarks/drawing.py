"""Rounds of generation, the same for every engine that is measured: warm-up, clock, and count of new tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker import Clock

#: Draws so many tokens at most for every prompt: (number of the round, tokens) -> length of each response.
Draw = Callable[[int, int], list[int]]


def rounds(settings: dict[str, Any], clock: Clock, draw: Draw) -> list[float]:
    """Draw round after round; return the new tokens of each. The first round may be a short one, to warm up."""
    counts: list[float] = []
    for number in range(settings["steps"]):
        tokens = settings["response_tokens"]
        clock.start()
        lengths = draw(number, settings.get("warm_up_tokens", tokens) if number == 0 else tokens)
        clock.stop(0.0)
        counts.append(float(sum(lengths)))
    return counts
