"""Outcomes of comparisons, whose means are all accuracies and win rates."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def outcomes(first: Float[Tensor, " *shape"], second: Float[Tensor, " *shape"] | float) -> Float[Tensor, " *shape"]:
    """Points of the first of two numbers: 1 where it is larger, 1/2 where both are equal, 0 where it is smaller.

    A model that does not tell two responses apart is right half of the time, so ties count one half: an accuracy is 1/2
    while policy and reference are equal, and swapping the two sides gives one minus it.

    Args:
        first: rewards of the responses that should win.
        second: rewards of their opponents, or a threshold.

    Returns:
        float32; nan where one of the two is nan: a comparison without one of its numbers has no outcome. Callers in
        whose data a number may be missing leave those out; anywhere else a nan is a fault and must show.
    """
    points = (first > second).float() + 0.5 * (first == second).float()
    return points.where((first == first) & (second == second), float("nan"))
