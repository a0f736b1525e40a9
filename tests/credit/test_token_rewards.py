"""Rewards of tokens: the penalty everywhere, the score at the end."""

from __future__ import annotations

import torch

from rlhf_lightning.credit.token_rewards import token_rewards
from rlhf_lightning.types import Ragged

#: Per-token log-ratios of the blog's example; score 0.4.
LOG_RATIO = [-0.3315, -0.0426, 0.6351]


def ragged(*rows: list[float]) -> Ragged:
    sequence = torch.tensor([i for i, row in enumerate(rows) for _ in row], dtype=torch.long)
    return Ragged(torch.tensor([x for row in rows for x in row]), sequence, len(rows))


def test_published_example() -> None:
    """beta 0.15. The other sign of the penalty flips the first two; a penalty left out at the end gives 0.4 there."""
    kl = ragged(LOG_RATIO)
    rewards = token_rewards(torch.tensor([0.4]), kl, kl=kl, coef=0.15).token
    torch.testing.assert_close(rewards, torch.tensor([0.049725, 0.00639, 0.4 - 0.095265]))


def test_two_responses_by_hand() -> None:
    """Spec: beta 0.1 on k1 [0.2, -0.5, 0] and score 1; an empty response has nowhere to put its score."""
    kl = ragged([0.2, -0.5, 0.0], [], [1.0])
    rewards = token_rewards(torch.tensor([1.0, 5.0, -2.0]), kl, kl=kl, coef=0.1).token
    torch.testing.assert_close(rewards, torch.tensor([-0.02, 0.05, 1.0, -2.1]))


def test_without_kl_only_the_last_token_has_a_reward() -> None:
    rewards = token_rewards(torch.tensor([3.0]), ragged([9.0, 9.0, 9.0])).token
    assert rewards.tolist() == [0.0, 0.0, 3.0]


def test_a_kl_without_a_coefficient_costs_nothing() -> None:
    kl = ragged([9.0, 9.0])
    assert token_rewards(torch.tensor([3.0]), kl, kl=kl).token.tolist() == [0.0, 3.0]


def test_rewards_of_steps_are_added() -> None:
    layout = ragged([0.0, 0.0, 0.0])
    rewards = token_rewards(torch.tensor([1.0]), layout, step_reward=ragged([0.5, float("nan"), 0.25])).token
    assert rewards.tolist() == [0.5, 0.0, 1.25]
