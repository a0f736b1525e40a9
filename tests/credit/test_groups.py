"""Advantages within groups: hand-worked values, plain loops, and what must not change them."""

from __future__ import annotations

import math
import statistics
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rlhf_lightning.credit as credit
from rlhf_lightning.credit.groups import zero_spread
from rlhf_lightning.types import Moments
from tests.helpers.policy_inputs import ragged

ONE = torch.zeros(4, dtype=torch.long)
WINNER = torch.tensor([1.0, 0.0, 0.0, 0.0])


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def test_grpo_golden() -> None:
    """Unbiased deviation 0.5: 0.75 / 0.5001. A biased one (0.4330) would give 1.7316."""
    torch.testing.assert_close(
        credit.grpo(WINNER, ONE), tensor(1.49970, -0.49990, -0.49990, -0.49990), atol=5e-6, rtol=0
    )


def test_dr_grpo_golden() -> None:
    torch.testing.assert_close(credit.grpo(WINNER, ONE, scale="none"), tensor(0.75, -0.25, -0.25, -0.25))


def test_rloo_golden() -> None:
    """4/3 of the centred reward; the plain mean as baseline would give 0.75."""
    torch.testing.assert_close(credit.rloo(WINNER, ONE), tensor(1.0, -1 / 3, -1 / 3, -1 / 3))


def test_batch_scale_golden() -> None:
    """Two groups [1, 0] and [3, 3]: centred .5 -.5 0 0; deviation of [1, 0, 3, 3] is 1.5."""
    got = credit.grpo(tensor(1, 0, 3, 3), torch.tensor([0, 0, 1, 1]), scale="batch", eps=0.0)
    torch.testing.assert_close(got, tensor(1 / 3, -1 / 3, 0, 0))


def test_equal_rewards_have_no_advantage() -> None:
    for reward in (tensor(2, 2, 2, 2), tensor(0.1, 0.1, 0.1, 0.1)):
        for scale in ("group", "batch", "none"):
            assert credit.grpo(reward, ONE, scale=scale).abs().max() < 1e-3
        torch.testing.assert_close(credit.rloo(reward, ONE), torch.zeros(4), atol=1e-6, rtol=0)


def test_a_group_of_one() -> None:
    group = torch.tensor([0, 1])
    assert credit.grpo(tensor(3, -1), group).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"set method\.rollout\.group_size >= 2"):
        credit.rloo(tensor(3, -1), group)


def test_unknown_rewards_belong_to_no_statistic() -> None:
    reward, group = tensor(1, math.nan, 0, 5, math.nan, math.nan), torch.tensor([0, 0, 0, 1, 1, 1])
    got = credit.grpo(reward, group, eps=0.0)
    torch.testing.assert_close(got[[0, 2]], tensor(0.5**0.5, -(0.5**0.5)))
    torch.testing.assert_close(credit.rloo(reward, group)[[0, 2, 3]], tensor(1, -1, 0))
    assert got[[1, 4, 5]].isnan().all()
    assert zero_spread(reward, group).tolist() == [False, True]


def test_a_group_without_known_rewards_has_moments_of_0() -> None:
    moments = credit.groups.group_moments(tensor(math.nan, math.nan, 4), torch.tensor([0, 0, 1]))
    assert [x.tolist() for x in moments] == [[0, 0, 4], [0, 0, 0], [0, 0, 1]]


def test_spread_of_two_rewards_of_the_batch() -> None:
    """Deviation of [1, 3] is the root of 2, whatever their groups; a single reward has none."""
    reward, group = tensor(1, 3, math.nan), torch.tensor([0, 0, 0])
    got = credit.grpo(reward, group, scale="batch", eps=0.0)
    torch.testing.assert_close(got[:2], tensor(-(0.5**0.5), 0.5**0.5))
    assert credit.grpo(tensor(3, math.nan), torch.tensor([0, 0]), scale="batch")[0] == 0


def test_the_tolerance_of_equal_rewards_is_still_equal() -> None:
    assert zero_spread(tensor(2, 2), torch.tensor([0, 0]), tolerance=0.0).tolist() == [True]
    assert zero_spread(tensor(), torch.zeros(0, dtype=torch.long)).tolist() == []


def loop(reward: list[float], group: list[int], kind: str, scale: str = "group", eps: float = 1e-4) -> list[float]:
    """One response at a time."""
    out = []
    for i, r in enumerate(reward):
        members = [x for x, g in zip(reward, group, strict=True) if g == group[i]]
        others = [x for j, (x, g) in enumerate(zip(reward, group, strict=True)) if g == group[i] and j != i]
        if kind == "rloo":
            out.append(r - sum(others) / len(others))
            continue
        spread = {"group": members, "batch": reward, "none": None}[scale]
        centred = r - sum(members) / len(members)
        out.append(centred if spread is None else centred / (statistics.stdev(spread) + eps))
    return out


GROUPS = st.lists(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=5), min_size=1, max_size=4)


def flat(groups: list[list[float]]) -> tuple[Tensor, Tensor]:
    rewards = torch.tensor([x for row in groups for x in row], dtype=torch.float64)
    return rewards, torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([len(row) for row in groups]))


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.sampled_from(["group", "batch", "none"]), st.floats(0.01, 1.0))
def test_equal_their_twins(groups: list[list[float]], scale: str, eps: float) -> None:
    reward, group = flat(groups)
    for kind, got in (("grpo", credit.grpo(reward, group, scale=scale, eps=eps)), ("rloo", credit.rloo(reward, group))):
        expected = loop(reward.tolist(), group.tolist(), kind, scale, eps)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.floats(-10, 10, width=32))
def test_a_constant_added_to_a_groups_rewards_changes_nothing(groups: list[list[float]], shift: float) -> None:
    reward, group = flat(groups)
    moved = reward + shift * group
    for function in (partial(credit.grpo, eps=0.1), partial(credit.grpo, scale="none"), credit.rloo):
        torch.testing.assert_close(function(moved, group), function(reward, group), atol=1e-6, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(GROUPS)
def test_rloo_is_the_centred_reward_times_n_over_n_minus_1(groups: list[list[float]]) -> None:
    reward, group = flat(groups)
    n = torch.bincount(group)[group].double()
    torch.testing.assert_close(
        credit.rloo(reward, group), n / (n - 1) * credit.grpo(reward, group, scale="none"), atol=1e-9, rtol=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(GROUPS, st.floats(0.5, 4.0))
def test_grpo_forgets_the_scale_of_rewards_and_dr_grpo_does_not(groups: list[list[float]], factor: float) -> None:
    reward, group = flat(groups)
    dr_grpo = partial(credit.grpo, scale="none")
    torch.testing.assert_close(dr_grpo(reward * factor, group), factor * dr_grpo(reward, group))
    _, std, _ = credit.groups.group_moments(reward, group)
    wide = std > 0.5
    grpo = partial(credit.grpo, eps=0.0)
    torch.testing.assert_close(grpo(reward * factor, group)[wide], grpo(reward, group)[wide])
    torch.testing.assert_close(dr_grpo(reward, group)[wide], (grpo(reward, group) * std)[wide])


def moments(mean: float, count: float) -> Moments:
    return Moments(torch.tensor(mean), torch.tensor(1.0), torch.tensor(count))


@pytest.mark.parametrize(
    ("baseline", "count", "expected"),
    [
        ("none", 5.0, [1.0, 4.0]),
        ("batch", 5.0, [-1.5, 1.5]),
        ("moving_average", 1.0, [0.5, 3.5]),
        ("moving_average", 0.0, [-1.5, 1.5]),  # nothing was seen yet: the rollout's own mean
    ],
)
def test_mean_baseline(baseline: str, count: float, expected: list[float]) -> None:
    got = credit.mean_baseline(tensor(1, 4), moments(0.5, count), baseline=baseline)
    torch.testing.assert_close(got, tensor(*expected))


def test_process_rewards_golden() -> None:
    """Steps 1 and 0 of one response, 1 of the other: mean 2/3, deviation 0.57735; z = 0.57735, -1.15470, 0.57735.

    The first response ends its steps at tokens 1 and 3: a token before gets the sum of both, a token behind nothing.
    """
    nan = math.nan
    steps = ragged([[nan, 1.0, nan, 0.0, nan], [1.0]], torch.float32)
    got = credit.grpo_process(steps, torch.tensor([0, 0]), eps=0.0)
    both = 0.57735 - 1.15470
    torch.testing.assert_close(got.token, tensor(both, both, -1.15470, -1.15470, 0, 0.57735), atol=2e-5, rtol=0)


def test_process_rewards_at_the_end_alone_are_grpo() -> None:
    rewards = [0.3, 1.2, -0.5]
    steps = ragged([[math.nan] * n + [r] for n, r in enumerate(rewards)], torch.float32)
    group = torch.zeros(3, dtype=torch.long)
    expected = credit.grpo(tensor(*rewards), group)
    torch.testing.assert_close(credit.grpo_process(steps, group).token, expected[steps.sequence])
