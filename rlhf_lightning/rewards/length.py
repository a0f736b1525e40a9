"""A reward for a length: the simplest rule, and what every other reward should be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.types import SampleGroup


class LengthReward:
    """Minus the distance of a response's length to a target, or the length itself.

    Args:
        tokenizer: not used; every reward is given the policy's.
        target: tokens; None rewards length without end.
        per_token: reward of a token.
    """

    name = "length"

    def __init__(self, tokenizer: Any = None, *, target: int | None = None, per_token: float = 0.01) -> None:
        self.target, self.per_token = target, per_token

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return [[self.per_token * self._tokens(response) for response in group.responses] for group in groups]

    def _tokens(self, response: list[int]) -> int:
        return len(response) if self.target is None else -abs(len(response) - self.target)
