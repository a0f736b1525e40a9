"""Generalised advantage estimation: numbers by hand, a scan and a plain loop as twins, and tokens that are no steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning.credit.temporal import estimated, gae, lagrangian
from rlhf_lightning.types import Ragged

#: Spec: beta 0.1 on log-probs [-1, -2, -0.5] against [-1.2, -1.5, -0.5], score 1.
REWARD, VALUE = [-0.02, 0.05, 1.0], [0.2, 0.1, 0.4]


def ragged(*rows: list[float]) -> Ragged:
    sequence = torch.tensor([i for i, row in enumerate(rows) for _ in row], dtype=torch.long)
    return Ragged(torch.tensor([x for row in rows for x in row]), sequence, len(rows))


def advantage(reward: Ragged, value: Ragged, **options: float) -> Tensor:
    return gae(reward, value, **options)["advantage"].token


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.95, [0.754, 0.92, 0.6]),  # without the factor lambda the first would be 0.83
        (1.0, [0.83, 0.95, 0.6]),  # sum of rewards to the end less the value: a bootstrap past the end breaks the last
        (0.0, [0.12 - 0.24, 0.35, 0.6]),  # the temporal differences alone
    ],
)
def test_golden(lam: float, expected: list[float]) -> None:
    result = gae(ragged(REWARD), ragged(VALUE), gamma=1.0, lam=lam)
    torch.testing.assert_close(result["advantage"].token, torch.tensor(expected))


def test_returns_by_hand() -> None:
    """R = A + V: [0.954, 1.02, 1.0] at lambda 0.95."""
    result = gae(ragged(REWARD), ragged(VALUE))["returns"]
    torch.testing.assert_close(result.token, torch.tensor([0.954, 1.02, 1.0]))


def test_whitened_rewards_keep_their_mean() -> None:
    """Mean 0.343333, unbiased variance 0.324633 of the golden's rewards; with lambda 1 and no values a suffix sum."""
    result = gae(ragged(REWARD), ragged([0.0, 0.0, 0.0]), lam=1.0, whiten_rewards=True)["advantage"]
    torch.testing.assert_close(result.token, torch.tensor([1.03, 1.324355, 1.495853]), atol=1e-5, rtol=0)
    biased = gae(ragged(REWARD), ragged([0.0] * 3), lam=1.0, whiten_rewards=True, unbiased=False)["advantage"]
    assert biased.token[2] > result.token[2]


@pytest.mark.parametrize(("score", "expected"), [(80.0, 50.0), (-80.0, -50.0), (3.0, 3.0)])
def test_the_clip_of_a_token_holds_penalty_and_score_together(score: float, expected: float) -> None:
    result = gae(ragged([0.5, score]), ragged([0.0, 0.0]), token_clip=50.0)["returns"]
    assert result.token[1].item() == expected


@pytest.mark.parametrize(
    ("reward", "cost", "price", "expected"),
    [
        (0.8, 0.4, 0.5, [0.4, 0.8, 0.4]),  # (0.8 - 0.5 * 0.4) / 1.5; without the division 0.6
        (80.0, -70.0, 1.0, [50.0, 50.0, -50.0]),  # both are held at safe-rlhf's 50
    ],
)
def test_reward_less_the_price_of_its_cost(reward: float, cost: float, price: float, expected: list[float]) -> None:
    nothing = ragged([0.0])
    result = lagrangian(ragged([reward]), nothing, ragged([cost]), nothing, torch.tensor(price, dtype=torch.float64))
    numbers = [result[name].token.item() for name in ("advantage", "returns", "cost_returns")]
    assert numbers == pytest.approx(expected)


def test_a_long_response() -> None:
    """With lambda 1 and no values the advantages are sums to the end: 8 thousand penalties of one sign."""
    penalty = -0.02 * torch.rand(8192, generator=torch.Generator().manual_seed(0))
    reward = Ragged(penalty, torch.zeros(8192, dtype=torch.long), 1)
    result = gae(reward, reward.with_token(torch.zeros(8192)), lam=1.0)["advantage"].token
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), penalty.double().flip(0).cumsum(0).flip(0), atol=4e-6, rtol=0)


def test_responses_do_not_see_each_other() -> None:
    both = advantage(ragged(REWARD, [0.3], [], [0.1, -0.2]), ragged(VALUE, [0.5], [], [0.0, 1.0]))
    apart = [advantage(ragged(r), ragged(v)) for r, v in [(REWARD, VALUE), ([0.3], [0.5]), ([0.1, -0.2], [0.0, 1.0])]]
    torch.testing.assert_close(both, torch.cat(apart))


def test_tokens_of_a_tool_are_skipped() -> None:
    """Second, third and last token were not chosen: whatever stands there, the others are as without them."""
    reward, value = ragged([-0.02, 7.0, -9.0, 0.05, 1.0, 4.0]), torch.tensor([0.2, 5.0, -5.0, 0.1, 0.4, 3.0])
    mask = torch.tensor([True, False, False, True, True, False])
    result = estimated(reward, value, gamma=1.0, lam=0.95, mask=mask)
    torch.testing.assert_close(result, torch.tensor([0.754, 0.0, 0.0, 0.92, 0.6, 0.0]))


def scan(reward: Tensor, value: Tensor, gamma: float, lam: float) -> Tensor:
    """The same by doubling: a prefix sum of x -> a x + b composed from the last token on, log2(T) steps."""
    following = torch.cat([value[1:], value.new_zeros(1)])
    b, a = reward + gamma * following - value, torch.full_like(reward, gamma * lam)
    reach = 1
    while reach < len(b):
        ahead_b, ahead_a = (torch.cat([x[reach:], x.new_full((reach,), fill)]) for x, fill in ((b, 0.0), (a, 1.0)))
        b, a = b + a * ahead_b, a * ahead_a
        reach *= 2
    return b


numbers = st.floats(-3, 3, allow_nan=False, width=32)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9), min_size=1, max_size=4),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_equals_the_scan_and_the_plain_loop(rows: list[list[tuple[float, float]]], gamma: float, lam: float) -> None:
    rewards, values = [[r for r, _ in row] for row in rows], [[v for _, v in row] for row in rows]
    result = advantage(ragged(*rewards), ragged(*values), gamma=gamma, lam=lam)
    pairs = list(zip(rewards, values, strict=True))
    scanned = [scan(torch.tensor(r).double(), torch.tensor(v).double(), gamma, lam) for r, v in pairs]
    torch.testing.assert_close(result.double(), torch.cat(scanned), atol=1e-4, rtol=1e-4)
    looped = []
    for r, v in pairs:
        for t in range(len(r)):  # straight from the definition: a discounted sum of temporal differences
            deltas = [r[k] + gamma * (v[k + 1] if k + 1 < len(v) else 0.0) - v[k] for k in range(t, len(r))]
            looped.append(sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas)))
    torch.testing.assert_close(result, torch.tensor(looped), atol=1e-4, rtol=1e-4)
