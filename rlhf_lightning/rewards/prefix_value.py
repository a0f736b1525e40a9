"""A reward as the value of responses that have not ended, for guidance at decoding time."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.rewards.base import (
    Reward,
    asks_policy,
    metrics_of,
    reads_columns,
    roles_of,
    score_groups,
    smallest_group,
)
from rlhf_lightning.types import Sample, SampleGroup


class RewardOfPrefix:
    """Score of a prompt with an unfinished response.

    Args:
        reward: any that is a function of prompt and response alone.
        compared: candidates that it sees together.

    Raises:
        ValueError: it reads columns of the data, asks the policy, or compares more responses than there are.
    """

    def __init__(self, reward: Reward, compared: int) -> None:
        problem = ""
        if reads_columns(reward):
            problem = "reads columns of the data, which no prefix has"
        elif asks_policy(reward) or roles_of(reward):
            problem = "asks the policy, which is drawing"
        elif smallest_group(reward) > compared:
            problem = f"compares at least {smallest_group(reward)} responses, and {compared} would be compared"
        if problem:
            raise ValueError(
                f"guidance.reward: {reward.name!r} {problem}: choose another one, reward@guidance.reward=lexicon or "
                "model for example"
            )
        self.reward = reward

    def __call__(
        self, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sample]]
    ) -> list[list[float | None]]:
        """See :class:`~rlhf_lightning.models.decoding.reward_guidance.PrefixValue`."""
        groups = [SampleGroup(list(prompt), list(row)) for prompt, row in zip(prompts, candidates, strict=True)]
        scores = score_groups(self.reward, groups)[0]
        metrics_of(self.reward)  # what was counted on the way says nothing of the responses
        return scores
