"""Losses of reward heads that look at one response at a time, and of a judge, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.losses.judge import pairwise_judge, stated_preference
from rlhf_lightning.losses.rating import attribute_regression, binary_discrimination, process_reward
from rlhf_lightning.types import Pair, Ragged

NAN = float("nan")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def ragged(rows: list[list[float]], mean_length: float | None = None) -> Ragged:
    tokens = [value for row in rows for value in row]
    sequence = [i for i, row in enumerate(rows) for _ in row]
    return Ragged(torch.tensor(tokens), torch.tensor(sequence), len(rows), mean_length)


def test_binary_discrimination() -> None:
    # Good with logit 1: softplus(-1) = .313262; bad with logit 2: softplus(2) = 2.126928. A swapped label, or a mean
    # taken too early, changes both.
    result = binary_discrimination(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
    assert result.diagnostics["accuracy"].tolist() == [1.0, 0.0]
    assert result.loss.tolist() == pytest.approx([0.313262, 2.126928], abs=1e-6)


@given(st.floats(-30, 30), st.floats(0, 1))
def test_a_soft_label_mixes_both_labels(logit: float, label: float) -> None:
    soft, good, bad = (
        float(binary_discrimination(torch.tensor([logit]), torch.tensor([value])).loss) for value in (label, 1.0, 0.0)
    )
    assert soft == pytest.approx(label * good + (1 - label) * bad, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        # Solutions with 2 and 1 steps. The step mean over the optimiser step of 3 steps in 2 solutions divides by 3/2;
        # a mean of means gives the second row, a sum would give twice the first solution's.
        ("step_mean", [(softplus(-1.0) + softplus(0.5)) / 1.5, softplus(-2.0) / 1.5]),
        ("solution_mean", [(softplus(-1.0) + softplus(0.5)) / 2, softplus(-2.0)]),
    ],
)
def test_process_reward(reduction: str, expected: list[float]) -> None:
    rewards, labels = ragged([[1.0, 0.5], [2.0]]), torch.tensor([1.0, 0.0, 1.0])
    result = process_reward(rewards, labels, reduction=reduction)  # type: ignore[arg-type]
    assert result.reward.tolist() == pytest.approx([0.75, 2.0])
    assert result.loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_step_mean_counts_the_whole_optimiser_step() -> None:
    # The same two solutions, one micro-batch each: the losses must be those of the joint batch.
    joint = process_reward(ragged([[1.0, 0.5], [2.0]]), torch.tensor([1.0, 0.0, 1.0])).loss
    first = process_reward(ragged([[1.0, 0.5]], mean_length=1.5), torch.tensor([1.0, 0.0])).loss
    second = process_reward(ragged([[2.0]], mean_length=1.5), torch.tensor([1.0])).loss
    assert torch.cat([first, second]).tolist() == pytest.approx(joint.tolist())


def test_attribute_regression_ignores_missing_ratings() -> None:
    # (1 - 3)^2 alone; then ((2 - 1)^2 + (0 - 2)^2) / 2; then nothing is known.
    rating = torch.tensor([[1.0, 9.0], [2.0, 0.0], [5.0, 5.0]], requires_grad=True)
    truth = torch.tensor([[3.0, NAN], [1.0, 2.0], [NAN, NAN]])
    loss = attribute_regression(rating, truth).loss
    assert loss.tolist() == pytest.approx([4.0, 2.5, 0.0])
    loss.sum().backward()
    assert rating.grad is not None
    assert torch.isfinite(rating.grad).all()
    assert rating.grad[0, 1] == 0
    assert rating.grad[2].tolist() == [0, 0]


def letters(right: float, wrong: float) -> Pair:
    return Pair(ragged([[math.log(right)]]), ragged([[math.log(wrong)]]))


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("vocabulary", -(math.log(0.5) + math.log(0.2)) / 2),
        # Among the letters .5 against .25 is 2/3, .2 against .2 is 1/2.
        ("letters", -(math.log(2 / 3) + math.log(1 / 2)) / 2),
    ],
)
def test_pairwise_judge(over: str, expected: float) -> None:
    loss = pairwise_judge(letters(0.5, 0.25), letters(0.2, 0.2), over=over)  # type: ignore[arg-type]
    assert loss.tolist() == pytest.approx([expected], rel=1e-5)


def test_a_liking_for_a_place_cancels_in_the_stated_preference() -> None:
    # Says "A" with probability .9 whatever stands there: right in one order, wrong in the other.
    assert stated_preference(letters(0.9, 0.1), letters(0.1, 0.9)).tolist() == pytest.approx([0.5])
    assert stated_preference(letters(0.9, 0.1), letters(0.9, 0.1)).tolist() == pytest.approx([0.9])
