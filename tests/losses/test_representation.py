"""Losses on hidden states and on opposite instructions: hand-worked numbers, plain loops, limits, gradients."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning import losses
from rlhf_lightning.types import LayerStates, MeasuredLoss, Ragged
from tests.helpers import reference_representation
from tests.helpers.loss_inputs import assert_detached
from tests.losses.golden_representation import BASE, NEGATIVE, POSITIVE, ROWS, Golden

OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "representation_fit": {"alpha": st.floats(-8, 8, width=32)},
    "contrastive_instruction": {
        "label_smoothing": st.floats(0, 0.484375, width=32),
        "reduction": st.sampled_from(["token_mean", "response_mean", "sum"]),
    },
}


def _sequence(rows: list[Any]) -> Tensor:
    return torch.tensor([number for number, row in enumerate(rows) for _ in row])


def inputs(given_: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Inputs of a loss, leaves that require gradients."""
    out: dict[str, Any] = {}
    for name, value in given_.items():
        if isinstance(value, dict):
            rows = next(iter(value.values()))
            states = tuple(
                torch.tensor([token for row in layer for token in row], dtype=dtype).requires_grad_()
                for layer in value.values()
            )
            out[name] = LayerStates(tuple(value), states, _sequence(rows), len(rows))
        else:
            token = torch.tensor([x for row in value for x in row], dtype=dtype).requires_grad_()
            out[name] = Ragged(token, _sequence(value), len(value))
    return out


def run(name: str, given_: dict[str, Any], dtype: torch.dtype = torch.float64, **options: Any) -> MeasuredLoss:
    result: MeasuredLoss = getattr(losses, name)(**inputs(given_, dtype), **options)
    return result


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    number = st.floats(-4, 4, width=32)

    def layer() -> list[list[list[float]]]:
        return [[[draw(number) for _ in range(3)] for _ in range(length)] for length in lengths]

    layers = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True))
    return {name: {at: layer() for at in layers} for name in ("states", "base", "positive", "negative")}


@st.composite
def log_probs(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    number = st.floats(-5, -0.125, width=32)
    return {name: [[draw(number) for _ in range(length)] for length in lengths] for name in ("match", "opposite")}


GIVEN = {"representation_fit": states(), "contrastive_instruction": log_probs()}


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(row: Golden, dtype: torch.dtype) -> None:
    result = run(row.loss, row.given, dtype, **row.options)
    assert result.loss.tolist() == pytest.approx(row.expected, abs=2e-6)
    for name, expected in row.diagnostics.items():
        assert result.diagnostics[name].tolist() == pytest.approx(expected, abs=2e-6), name
    assert_detached(result)


def test_every_option_is_drawn() -> None:
    assert {row.loss for row in ROWS} == set(OPTIONS)
    for name, options in OPTIONS.items():
        parameters = inspect.signature(getattr(losses, name)).parameters.values()
        assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(options)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_equals_plain_loop(name: str, data: st.DataObject) -> None:
    options, numbers = data.draw(st.fixed_dictionaries(OPTIONS[name])), data.draw(GIVEN[name])
    expected = getattr(reference_representation, name)(**numbers, **options)
    assert run(name, numbers, **options).loss.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(numbers=states(), shift=st.floats(-3, 3, width=32))
def test_only_differences_of_states_count(numbers: dict[str, Any], shift: float) -> None:
    moved = {
        name: {at: [[[x + shift for x in token] for token in row] for row in layer] for at, layer in layers.items()}
        for name, layers in numbers.items()
    }
    for pair in (("states", "base"), ("positive", "negative")):
        both = numbers | {name: moved[name] for name in pair}
        expected = run("representation_fit", numbers).loss.tolist()
        assert run("representation_fit", both).loss.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_the_gradient_has_length_one_and_is_none_at_the_target(alpha: float) -> None:
    """At distance 0 the norm has no derivative; a root of a sum of squares would give nan there."""
    given_ = inputs({"states": {3: BASE}, "base": {3: BASE}, "positive": {3: POSITIVE}, "negative": {3: NEGATIVE}})
    result = losses.representation_fit(**given_, alpha=alpha)
    result.loss.sum().backward()
    (gradient,) = [state.grad for state in given_["states"].states]
    assert torch.linalg.vector_norm(gradient).item() == pytest.approx(float(alpha > 0))
    assert result.loss.item() == pytest.approx(alpha * math.sqrt(2))
    assert all(state.grad is None for name in ("base", "positive", "negative") for state in given_[name].states)


@pytest.mark.parametrize(("gap", "sign"), [(1.0, -1), (math.log(4), 0), (2.0, 1)])
def test_the_contrast_is_smallest_at_its_smoothing(gap: float, sign: int) -> None:
    """The gradient in D is 0 at sigma(D) = 0.8 and changes its sign there: it ends somewhere."""
    given_ = inputs({"match": [[-1.0]], "opposite": [[-1.0 - gap]]})
    losses.contrastive_instruction(**given_, label_smoothing=0.2).loss.sum().backward()
    slope = -given_["opposite"].token.grad.item()
    assert (abs(slope) > 1e-3) * math.copysign(1, slope) == sign


def test_far_margins_stay_finite() -> None:
    for one, other in ((-1e4, -1e-3), (-1e-3, -1e4)):
        given_ = inputs({"match": [[one]], "opposite": [[other]]}, torch.float32)
        result = losses.contrastive_instruction(**given_)
        result.loss.sum().backward()
        assert result.loss.isfinite().all()
        assert given_["match"].token.grad.isfinite().all()


def test_states_of_other_layers_than_named_are_refused() -> None:
    with pytest.raises(ValueError, match="1 states for the 2 layers"):
        LayerStates((1, 2), (torch.zeros(1, 2),), torch.zeros(1, dtype=torch.long), 1)
