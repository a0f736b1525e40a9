"""Losses of reward heads that look at one response at a time, and of a judge, against numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning import losses
from rlhf_lightning.losses.judge import pairwise_judge, stated_preference
from rlhf_lightning.losses.rating import attribute_regression, binary_discrimination, process_reward
from rlhf_lightning.types import Pair, Ragged
from tests.helpers.loss_inputs import assert_detached
from tests.losses.golden_rating import ROWS
from tests.losses.golden_reward import NAN, Golden


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def ragged(rows: list[list[float]], mean_length: float | None = None) -> Ragged:
    tokens = [value for row in rows for value in row]
    sequence = [i for i, row in enumerate(rows) for _ in row]
    return Ragged(torch.tensor(tokens, requires_grad=True), torch.tensor(sequence), len(rows), mean_length)


def tensors(name: str, value: Any) -> Any:
    if name in ("verdict", "verdict_swapped"):
        return Pair(*map(ragged, value))
    return ragged(value) if name == "step_reward" else torch.tensor(value, requires_grad=name in ("reward", "rating"))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_value(row: Golden) -> None:
    result = getattr(losses, row.loss)(
        **{name: tensors(name, value) for name, value in row.inputs.items()}, **row.options
    )
    loss = result if isinstance(result, torch.Tensor) else result.loss
    assert loss.tolist() == pytest.approx(row.expected, abs=2e-6)
    if loss is not result:
        assert_detached(result)


LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=1, max_size=4), min_size=1, max_size=4)


def cross_entropy(logit: float, label: float) -> float:
    """-label log p - (1 - label) log(1 - p), as logarithms of sums."""
    return label * softplus(-logit) + (1 - label) * softplus(logit)


@given(LOGITS, st.data())
def test_labels_equal_a_plain_loop(rows: list[list[float]], data: st.DataObject) -> None:
    """Single responses and steps, in float64."""
    flat = [logit for row in rows for logit in row]
    labels = data.draw(st.lists(st.floats(0, 1), min_size=len(flat), max_size=len(flat)))
    label = torch.tensor(labels, dtype=torch.float64)
    each = [cross_entropy(*pair) for pair in zip(flat, labels, strict=True)]
    result = binary_discrimination(torch.tensor(flat, dtype=torch.float64), label)
    assert result.loss.tolist() == pytest.approx(each, rel=1e-9, abs=1e-12)
    steps = ragged(rows)
    steps.token = steps.token.double()
    by_step, by_solution, taken = [], [], iter(each)
    for row in rows:
        losses_of_row = [next(taken) for _ in row]
        by_step.append(sum(losses_of_row) * len(rows) / len(flat))
        by_solution.append(sum(losses_of_row) / len(row))
    # rewards were given in float32
    assert process_reward(steps, label).loss.tolist() == pytest.approx(by_step, rel=1e-5, abs=1e-6)
    result = process_reward(steps, label, reduction="solution_mean")
    assert result.loss.tolist() == pytest.approx(by_solution, rel=1e-5, abs=1e-6)


RATING = st.floats(-5, 5)


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_ratings_equal_a_plain_loop(attributes: int, responses: int, data: st.DataObject) -> None:
    def table(of: st.SearchStrategy[float]) -> list[list[float]]:
        row = st.lists(of, min_size=attributes, max_size=attributes)
        return data.draw(st.lists(row, min_size=responses, max_size=responses))

    ratings, truth = table(RATING), table(RATING | st.just(NAN))
    expected = []
    for rating, true in zip(ratings, truth, strict=True):
        errors = [(a - b) ** 2 for a, b in zip(rating, true, strict=True) if not math.isnan(b)]
        expected.append(sum(errors) / max(len(errors), 1))
    loss = attribute_regression(*(torch.tensor(part, dtype=torch.float64) for part in (ratings, truth))).loss
    assert loss.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(*[st.floats(-20, -0.01)] * 4), min_size=1, max_size=4))
def test_verdicts_equal_a_plain_loop(pairs: list[tuple[float, float, float, float]]) -> None:
    sides = [ragged([[value] for value in column]) for column in zip(*pairs, strict=True)]
    for side in sides:
        side.token = side.token.double()
    first, swapped = Pair(*sides[:2]), Pair(*sides[2:])
    letters_only = [-(math.log(share(a, b)) + math.log(share(c, d))) / 2 for a, b, c, d in pairs]
    assert pairwise_judge(first, swapped, over="letters").tolist() == pytest.approx(letters_only, rel=1e-5, abs=1e-6)
    assert pairwise_judge(first, swapped).tolist() == pytest.approx([-(a + c) / 2 for a, _, c, _ in pairs], rel=1e-5)
    stated = [(share(a, b) + share(c, d)) / 2 for a, b, c, d in pairs]
    assert stated_preference(first, swapped).tolist() == pytest.approx(stated, rel=1e-5, abs=1e-6)


def share(right: float, wrong: float) -> float:
    """The right letter's probability among the two."""
    return math.exp(right) / (math.exp(right) + math.exp(wrong))


@given(st.floats(-30, 30), st.floats(0, 1))
def test_a_soft_label_mixes_both_labels(logit: float, label: float) -> None:
    soft, good, bad = (
        float(binary_discrimination(torch.tensor([logit]), torch.tensor([value])).loss) for value in (label, 1.0, 0.0)
    )
    assert soft == pytest.approx(label * good + (1 - label) * bad, rel=1e-4, abs=1e-5)


def test_the_step_mean_counts_the_whole_optimiser_step() -> None:
    # The same two solutions, one micro-batch each: the losses must be those of the joint batch.
    joint = process_reward(ragged([[1.0, 0.5], [2.0]]), torch.tensor([1.0, 0.0, 1.0])).loss
    first = process_reward(ragged([[1.0, 0.5]], mean_length=1.5), torch.tensor([1.0, 0.0])).loss
    second = process_reward(ragged([[2.0]], mean_length=1.5), torch.tensor([1.0])).loss
    assert torch.cat([first, second]).tolist() == pytest.approx(joint.tolist())


def test_missing_ratings_have_no_gradient() -> None:
    rating = torch.tensor([[1.0, 9.0], [2.0, 0.0], [5.0, 5.0]], requires_grad=True)
    truth = torch.tensor([[3.0, NAN], [1.0, 2.0], [NAN, NAN]])
    attribute_regression(rating, truth).loss.sum().backward()
    assert rating.grad is not None
    assert torch.isfinite(rating.grad).all()
    assert rating.grad[0, 1] == 0
    assert rating.grad[2].tolist() == [0, 0]


def test_rewards_and_diagnostics() -> None:
    result = binary_discrimination(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
    assert result.diagnostics["accuracy"].tolist() == [1.0, 0.0]
    undecided = binary_discrimination(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert undecided.diagnostics["accuracy"].tolist() == [0.5, 0.5]
    soft = binary_discrimination(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.49])).diagnostics
    assert soft["reward/chosen"].tolist() == [1.0], "a soft label counts as good from 1/2"
    rated = attribute_regression(torch.tensor([[1.0, 9.0], [2.0, 0.0]]), torch.tensor([[3.0, NAN], [1.0, 2.0]]))
    assert rated.reward.tolist() == [5.0, 1.0]
    steps = process_reward(ragged([[1.0, 0.5], [2.0]]), torch.tensor([1.0, 0.0, 1.0]))
    assert steps.reward.tolist() == pytest.approx([0.75, 2.0])


def letters(right: float, wrong: float) -> Pair:
    return Pair(ragged([[math.log(right)]]), ragged([[math.log(wrong)]]))


def test_a_liking_for_a_place_cancels_in_the_stated_preference() -> None:
    # Says "A" with probability .9 whatever stands there: right in one order, wrong in the other.
    assert stated_preference(letters(0.9, 0.1), letters(0.1, 0.9)).tolist() == pytest.approx([0.5])
    assert stated_preference(letters(0.9, 0.1), letters(0.9, 0.1)).tolist() == pytest.approx([0.9])


def test_tokens_of_a_letter_add_up() -> None:
    two_tokens = Pair(ragged([[math.log(0.5)] * 2]), ragged([[math.log(0.25)] * 2]))  # 1/4 against 1/16
    assert stated_preference(two_tokens, two_tokens).tolist() == pytest.approx([0.8])
