"""Shaping of rewards: order, statistics, and responses that did not end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_lightning.methods import RewardShaping

ENDED = torch.tensor([False, False, False, False])
SCORES = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, unbiased standard deviation 2.160247


def shaped(scores: Tensor = SCORES, truncated: Tensor = ENDED, **options: object) -> list[float]:
    return RewardShaping(**options)(scores, truncated).tolist()  # type: ignore[arg-type]


def test_nothing_happens_by_default() -> None:
    assert shaped() == SCORES.tolist()


def test_clip_is_symmetric() -> None:
    assert shaped(torch.tensor([-9.0, 0.5, 9.0, 5.0]), clip=5.0) == [-5.0, 0.5, 5.0, 5.0]


def test_running_scale_divides_by_the_deviation_of_all_scores_so_far() -> None:
    """The second rollout is scaled by both: [1, 2, 3, 6, 8, 10] has standard deviation 3.577709."""
    shaping = RewardShaping(scale="running")
    first = shaping(SCORES, ENDED)
    torch.testing.assert_close(first, SCORES / 2.160247)
    second = shaping(torch.tensor([8.0, 10.0]), ENDED[:2])
    torch.testing.assert_close(second, torch.tensor([8.0, 10.0]) / 3.577709)
    assert float(shaping.mean) == pytest.approx(5.0)


def test_center_subtracts_the_mean_of_the_same_scores() -> None:
    torch.testing.assert_close(torch.tensor(shaped(scale="running", center=True)), (SCORES - 3) / 2.160247)


def test_ref_scale_stays_that_of_the_first_samples() -> None:
    """Detail 9: the initial policy's samples have mean 0 and variance 1, and later ones are measured by them."""
    shaping = RewardShaping(scale="ref", center=True, ref_samples=4)
    first = shaping(SCORES, ENDED)
    torch.testing.assert_close(first.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(first.std(), torch.tensor(1.0))
    later = shaping(torch.tensor([100.0, 300.0]), ENDED[:2])
    torch.testing.assert_close(later, torch.tensor([97.0, 297.0]) / 2.160247)


def test_ref_scale_takes_whole_rollouts_until_there_are_enough() -> None:
    shaping = RewardShaping(scale="ref", ref_samples=5)
    shaping(SCORES, ENDED)
    shaping(torch.tensor([8.0, 10.0]), ENDED[:2])
    shaping(torch.tensor([50.0, 60.0]), ENDED[:2])
    assert float(shaping.count) == 6


@pytest.mark.parametrize(
    ("clip_first", "expected"),
    [
        (False, [0.462910, 0.925820, 1.388730, 2.0]),  # MOSS: 6 / 2.160247 is more than 2
        (True, [2.0, 4.0, 4.0, 4.0]),  # trlX: [1, 2, 2, 2] has standard deviation 0.5
    ],
)
def test_clip_and_scale_in_either_order(clip_first: bool, expected: list[float]) -> None:
    torch.testing.assert_close(
        torch.tensor(shaped(scale="running", clip=2.0, clip_first=clip_first)), torch.tensor(expected)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"missing_eos": "subtract"}, [1.0, 1.0, 3.0, 6.0]),
        ({"missing_eos": "replace"}, [1.0, -1.0, 3.0, 6.0]),
        ({"missing_eos": "replace", "missing_eos_penalty": 3.0}, [1.0, -3.0, 3.0, 6.0]),
        ({"missing_eos": "replace", "clip": 0.5}, [0.5, -1.0, 0.5, 0.5]),  # the penalty is not clipped
        ({"missing_eos": "none"}, [1.0, 2.0, 3.0, 6.0]),
    ],
)
def test_responses_without_an_end(options: dict[str, object], expected: list[float]) -> None:
    assert shaped(truncated=torch.tensor([False, True, False, False]), **options) == expected


def test_a_missing_score_stays_nan_and_counts_nowhere() -> None:
    shaping = RewardShaping(scale="running", missing_eos="replace")
    shaped = shaping(torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([False, True, False]))
    assert shaped[1].isnan()
    assert float(shaping.count) == 2


def test_validation_leaves_the_statistics_alone() -> None:
    shaping = RewardShaping(scale="running")
    shaping(SCORES, ENDED)
    before = {name: value.clone() for name, value in shaping.state_dict().items()}
    shaping.shaped(torch.tensor([50.0]), torch.tensor([False]))
    assert all(torch.equal(before[name], value) for name, value in shaping.state_dict().items())


def test_statistics_survive_a_cast_and_a_checkpoint() -> None:
    shaping = RewardShaping(scale="running").to(torch.bfloat16)
    shaping(SCORES, ENDED)
    other = RewardShaping(scale="running")
    other.load_state_dict(shaping.state_dict())
    assert other.count.dtype == torch.float64
    more = torch.tensor([8.0, 10.0])
    assert torch.equal(other(more, ENDED[:2]), shaping(more, ENDED[:2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "std"}, "none, running, ref"),
        ({"missing_eos": "drop"}, "none, subtract, replace"),
        ({"clip": 0.0}, "must be positive or null"),
        ({"center": True}, "set scale=running or scale=ref"),
        ({"ref_samples": 1}, "at least 2"),
    ],
)
def test_wrong_options_are_refused_with_the_choices(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardShaping(**options)  # type: ignore[arg-type]
