"""Returns of tokens: REINFORCE++, its variant with a group baseline, and ReMax."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlhf_lightning.credit as credit
from rlhf_lightning.credit.returns import returns_to_go
from rlhf_lightning.types import Ragged
from tests.helpers.policy_inputs import Rows, ragged

REWARDS = [[-0.1, -0.2, 1.0], [0.5]]
ROWS = st.lists(st.lists(st.floats(-3, 3), min_size=1, max_size=5), min_size=1, max_size=5)


def test_returns_golden() -> None:
    """Back to front: 1, 0.8, 0.7; with gamma 0.5: 1, 0.3, 0.05."""
    got = returns_to_go(ragged(REWARDS))
    torch.testing.assert_close(got.token, torch.tensor([0.7, 0.8, 1.0, 0.5], dtype=torch.float64))
    got = returns_to_go(ragged(REWARDS), 0.5)
    torch.testing.assert_close(got.token, torch.tensor([0.05, 0.3, 1.0, 0.5], dtype=torch.float64))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(0, 1))
def test_returns_equal_their_twin(rows: Rows, gamma: float) -> None:
    expected = [sum(gamma ** (s - t) * row[s] for s in range(t, len(row))) for row in rows for t in range(len(row))]
    got = returns_to_go(ragged(rows), gamma).token
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)


def test_returns_of_a_long_response() -> None:
    """8 thousand small penalties of one sign, 82 nats together, which float32 resolves to 8e-6."""
    penalty = -0.02 * torch.rand(8192, generator=torch.Generator().manual_seed(0))
    layout = Ragged(penalty, torch.zeros(8192, dtype=torch.long), 1)
    exact = penalty.double().flip(0).cumsum(0).flip(0)
    got = returns_to_go(layout).token
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, atol=4e-6, rtol=0)


def test_reinforce_pp_golden() -> None:
    """Returns .7 .8 1 .5: mean .75, biased variance .0325; the unbiased one (.043333) would give -.240192 first."""
    got = credit.reinforce_pp(ragged(REWARDS)).token
    expected = [(x - 0.75) / math.sqrt(0.0325) for x in (0.7, 0.8, 1.0, 0.5)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)
    unbiased = credit.reinforce_pp(ragged(REWARDS), unbiased=True).token
    assert unbiased[0].item() == pytest.approx(-0.05 / math.sqrt(0.13 / 3), abs=1e-6)
    plain = credit.reinforce_pp(ragged(REWARDS), normalize=False)
    torch.testing.assert_close(plain.token, returns_to_go(ragged(REWARDS)).token)


def test_remax_golden() -> None:
    got = credit.remax(ragged(REWARDS), torch.tensor([0.25, 1.0], dtype=torch.float64))
    torch.testing.assert_close(got.token, torch.tensor([0.45, 0.55, 0.75, -0.5], dtype=torch.float64))
    unknown = credit.remax(ragged(REWARDS), torch.tensor([math.nan, 1.0], dtype=torch.float64))
    torch.testing.assert_close(unknown.token[:3], returns_to_go(ragged(REWARDS)).token[:3])


def test_reinforce_pp_baseline_golden() -> None:
    """Groups [1, 0] and [3, 2]: centred +-.5; lengths 1 3 2 2 weigh them: mean -.125, variance .25 - .015625."""
    reward, group = torch.tensor([1.0, 0.0, 3.0, 2.0]), torch.tensor([0, 0, 1, 1])
    length = torch.tensor([1, 3, 2, 2])
    got = credit.reinforce_pp_baseline(reward, group, length)
    std = math.sqrt(0.25 - 0.015625)
    torch.testing.assert_close(got, torch.tensor([0.625, -0.375, 0.625, -0.375]) / std, atol=1e-5, rtol=1e-5)
    plain = credit.reinforce_pp_baseline(reward, group, length, normalize=False)
    torch.testing.assert_close(plain, torch.tensor([0.5, -0.5, 0.5, -0.5]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-3, 3), st.integers(1, 4)), min_size=1, max_size=4), min_size=1, max_size=4
    ).filter(lambda groups: sum(map(len, groups)) > 1)
)
def test_reinforce_pp_baseline_equals_its_twin(groups: list[list[tuple[float, int]]]) -> None:
    centred = [r - sum(x for x, _ in rows) / len(rows) for rows in groups for r, _ in rows]
    tokens = [
        c for c, (_, n) in zip(centred, (item for rows in groups for item in rows), strict=True) for _ in range(n)
    ]
    mean, variance = statistics.fmean(tokens), statistics.pvariance(tokens)
    expected = [(c - mean) / math.sqrt(variance + 1e-8) for c in centred]
    reward = torch.tensor([r for rows in groups for r, _ in rows], dtype=torch.float64)
    length = torch.tensor([n for rows in groups for _, n in rows])
    group = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([len(rows) for rows in groups]))
    got = credit.reinforce_pp_baseline(reward, group, length)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=1e-4)


def test_responses_without_tokens_do_not_disturb() -> None:
    reward, group = torch.tensor([1.0, math.nan, 0.0]), torch.zeros(3, dtype=torch.long)
    got = credit.reinforce_pp_baseline(reward, group, torch.tensor([2, 0, 2]))
    torch.testing.assert_close(got[[0, 2]], torch.tensor([1.0, -1.0]), atol=1e-6, rtol=1e-6)
    last = credit.reinforce_pp_baseline(torch.tensor([1.0, 0.0, math.nan]), group, torch.tensor([2, 2, 0]))
    torch.testing.assert_close(last[:2], torch.tensor([1.0, -1.0]), atol=1e-6, rtol=1e-6)
    assert credit.reinforce_pp_baseline(reward, group, torch.zeros(3, dtype=torch.long)).tolist() == [0.5, 0.0, -0.5]
