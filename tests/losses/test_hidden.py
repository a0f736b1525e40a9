"""Losses on distributions, hidden states and values: hand-worked numbers, plain loops, properties, gradients."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_lightning import losses
from tests.helpers import reference_hidden
from tests.helpers.hidden_inputs import inputs, run
from tests.helpers.loss_inputs import assert_detached
from tests.helpers.reference_hidden import Instruction, Step
from tests.losses.golden_hidden import GROUPS, ROWS, STEPS, Golden

NAMES = ["context_distillation", "knowledge_distillation", "coin", "ilql"]
REDUCTION = st.sampled_from(["token_mean", "response_mean", "sum"])


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, width=32)


OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "context_distillation": {"classes": st.integers(0, 6), "reduction": REDUCTION},
    "knowledge_distillation": {
        "divergence": st.sampled_from(["forward_kl", "reverse_kl", "jsd"]),
        "mixture": floats(0.0625, 0.9375),
        "temperature": floats(0.5, 4.0),
        "reduction": REDUCTION,
    },
    "coin": {"weight": floats(0.0, 1024.0), "temperature": floats(0.0625, 1.0), "in_batch": st.booleans()},
    "ilql": {
        "tau": floats(0.0625, 0.9375),
        "gamma": floats(0.0, 1.0),
        "cql_weight": floats(0.0, 2.0),
        "awac_weight": floats(0.0, 2.0),
        "awac_beta": floats(-1.0, 1.0),
    },
}


@st.composite
def distributions(draw: st.DrawFn) -> tuple[Any, Any]:
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    eighths = st.integers(-32, 32).map(lambda number: number / 8)
    logits = st.lists(eighths, min_size=5, max_size=5, unique=True)  # of equal logits either may be kept
    return tuple([[draw(logits) for _ in range(n)] for n in lengths] for _ in range(2))  # type: ignore[return-value]


@st.composite
def instructions(draw: st.DrawFn) -> tuple[Any]:
    log_probs = st.lists(floats(-5, -0.125), min_size=1, max_size=3)
    state = st.lists(floats(-2, 2), min_size=3, max_size=3).filter(lambda x: math.hypot(*x) > 0.125)

    def one() -> Instruction:
        return Instruction(draw(log_probs), draw(log_probs), draw(state), draw(state))

    nothing = Instruction([], [], [0.0] * 3, [0.0] * 3)
    return ([(one(), one() if draw(st.booleans()) else nothing) for _ in range(draw(st.integers(1, 4)))],)


@st.composite
def episodes(draw: st.DrawFn) -> tuple[Any, Any]:
    value, log_prob = floats(-3, 3), floats(-5, -0.125)
    both, logs = st.tuples(value, value), st.tuples(log_prob, log_prob)
    step = st.builds(Step, log_prob, both, both, value, logs)
    responses = draw(st.lists(st.lists(step, min_size=1, max_size=4), min_size=1, max_size=3))
    return responses, [draw(value) for _ in responses]


GIVEN = {
    "context_distillation": distributions(),
    "knowledge_distillation": distributions(),
    "coin": instructions(),
    "ilql": episodes(),
}


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(row: Golden, dtype: torch.dtype) -> None:
    result = run(row.loss, row.given, dtype, **row.options)
    assert result.loss.tolist() == pytest.approx(row.expected, abs=2e-5)
    for name, expected in row.diagnostics.items():
        assert result.diagnostics[name].flatten().tolist() == pytest.approx(expected, abs=2e-5), name
    assert_detached(result)


def test_every_loss_has_a_golden_row_and_every_option_is_drawn() -> None:
    assert {row.loss for row in ROWS} == set(NAMES)
    for name in NAMES:
        parameters = inspect.signature(getattr(losses, name)).parameters.values()
        assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(OPTIONS[name])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_equals_plain_loop(name: str, data: st.DataObject) -> None:
    options, numbers = data.draw(st.fixed_dictionaries(OPTIONS[name])), data.draw(GIVEN[name])
    expected = getattr(reference_hidden, name)(*numbers, **options)
    assert run(name, numbers, **options).loss.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@settings(max_examples=12, deadline=None)
@given(numbers=distributions(), data=st.data())
def test_a_student_like_its_teacher_has_nothing_to_learn(numbers: Any, data: st.DataObject) -> None:
    for name in ("context_distillation", "knowledge_distillation"):
        options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
        twins = inputs(name, (numbers[0], numbers[0]))
        result = getattr(losses, name)(**twins, **options)
        result.loss.sum().backward()
        assert result.loss.tolist() == pytest.approx([0.0] * len(numbers[0]), abs=1e-9)
        assert twins["policy"].tokens.hidden.grad.abs().max() < 1e-6
        assert twins["reference"].tokens.hidden.grad is None


@settings(max_examples=12, deadline=None)
@given(numbers=distributions(), shift=floats(-3, 3))
def test_a_constant_added_to_logits_changes_nothing(numbers: Any, shift: float) -> None:
    moved = [[[x + shift for x in token] for token in row] for row in numbers[0]]
    for name in ("context_distillation", "knowledge_distillation"):
        assert run(name, (moved, numbers[1])).loss.tolist() == pytest.approx(run(name, numbers).loss.tolist(), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(numbers=instructions(), data=st.data())
def test_the_contrastive_part_is_never_worth_more_than_the_likelihood(numbers: Any, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS["coin"]))
    diagnostics = run("coin", numbers, **options).diagnostics
    if options["in_batch"]:  # else each group has a bound of its own, whatever is batched with it
        diagnostics = {name: values.mean() for name, values in diagnostics.items()}
    likelihood = diagnostics["nll/original"] + diagnostics["nll/paraphrase"]
    scaled = diagnostics["contrastive/scaled"]
    assert (scaled <= likelihood * (1 + 1e-6) + 1e-9).all()
    bounded = torch.minimum(options["weight"] * diagnostics["contrastive/raw"], likelihood)
    torch.testing.assert_close(scaled, bounded, rtol=1e-5, atol=1e-7)


def test_the_bound_is_a_constant_for_the_gradient() -> None:
    # Above the bound the gradient of the contrastive part is L_gen / L_c times its own, and L_gen's own stays as it is.
    states, log_probs = [], []
    for weight in (1e6, 0.0):
        given_ = inputs("coin", (GROUPS,))
        result = losses.coin(**given_, weight=weight, temperature=0.5)
        result.loss.mean().backward()
        log_probs.append(given_["policy"].original.token.grad)
        states.append((given_["embedding"].grad, result.diagnostics))
    assert torch.equal(*log_probs)
    given_ = inputs("coin", (GROUPS,))
    losses.coin(**given_, weight=1e-3, temperature=0.5).loss.mean().backward()
    gradient, diagnostics = states[0]
    factor = (diagnostics["nll/original"] + diagnostics["nll/paraphrase"]).mean() / diagnostics[
        "contrastive/raw"
    ].mean()
    torch.testing.assert_close(gradient, given_["embedding"].grad * factor / 1e-3)
    assert not states[1][0].any()


@settings(max_examples=12, deadline=None)
@given(numbers=instructions(), scale=floats(0.5, 8.0), data=st.data())
def test_coin_sees_directions_and_no_order(numbers: Any, scale: float, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS["coin"]))
    groups, plain = numbers[0], run("coin", numbers, **options).loss.tolist()
    longer = [
        tuple(Instruction(i.original, i.paraphrase, [scale * x for x in i.state], i.other_state) for i in group)
        for group in groups
    ]
    assert run("coin", (longer,), **options).loss.tolist() == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert run("coin", (groups[::-1],), **options).loss.tolist()[::-1] == pytest.approx(plain, rel=1e-4, abs=1e-6)


def test_an_empty_slot_gets_no_gradient() -> None:
    given_ = inputs("coin", (GROUPS,))
    losses.coin(**given_).loss.mean().backward()
    gradient = given_["embedding"].grad
    assert gradient.isfinite().all()
    assert not gradient[6:].any()
    assert gradient[:6].any()


@settings(max_examples=12, deadline=None)
@given(numbers=episodes())
def test_the_middle_expectile_is_half_the_squared_error(numbers: Any) -> None:
    diagnostics = run("ilql", numbers, tau=0.5).diagnostics
    torch.testing.assert_close(diagnostics["loss/value"], 0.5 * diagnostics["value/advantage"] ** 2)


@settings(max_examples=12, deadline=None)
@given(numbers=episodes(), gamma=floats(0.0, 1.0))
def test_true_values_have_no_loss(numbers: Any, gamma: float) -> None:
    """Values that are discounted returns, and copies equal to them, leave the likelihood alone."""
    responses, scores = numbers
    exact = []
    for steps, score in zip(responses, scores, strict=True):
        returns = [score * gamma ** (len(steps) - 1 - number) for number in range(len(steps))]
        exact.append([Step(s.log_prob, (v, v), (v, v), v, s.q_log_prob) for s, v in zip(steps, returns, strict=True)])
    diagnostics = run("ilql", (exact, scores), gamma=gamma).diagnostics
    assert diagnostics["loss/q"].abs().max() < 1e-10
    assert diagnostics["loss/value"].abs().max() < 1e-10


def test_who_learns_from_what() -> None:
    """V from its own loss, Q from the returns and V', the policy from its likelihood, the copies from nothing."""
    given_ = inputs("ilql", (STEPS, [1.5]))
    losses.ilql(**given_, tau=0.75, gamma=0.5, awac_beta=2.0).loss.sum().backward()
    values = given_["values"]
    assert values.target_q.grad is None
    # d/dV of tau u^2 with u = Q - V, over 2 tokens: -.75 * 2 * .1 / 2 and .25 * 2 * .3 / 2. Nothing through V' or awac.
    assert values.value.grad.tolist() == pytest.approx([-0.075, 0.075])
    # 2 (Q - goal) / 2 tokens: goals 0.35 and 1.5
    assert values.q.grad.flatten().tolist() == pytest.approx([0.15, -0.5, -0.35, 0.5])
    assert given_["policy"].token.grad.tolist() == pytest.approx([-math.exp(0.2) / 2, -math.exp(-0.6) / 2])
    assert values.q_log_prob.grad.unique().tolist() == pytest.approx([-0.05])


def test_scores_of_empty_slots_are_not_read() -> None:
    plain = run("ilql", (STEPS, [1.5])).loss
    slots = inputs("ilql", (STEPS, [1.5]))
    slots["policy"].count = 2
    slots["policy"].mean_length = 1.0
    slots["score"] = torch.tensor([1.5, math.nan], dtype=torch.float64)
    assert losses.ilql(**slots).loss.tolist() == pytest.approx([2 * plain.item(), 0.0])


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("ilql", "tau", 1.0),
        ("ilql", "gamma", 1.5),
        ("ilql", "cql_weight", -1.0),
        ("coin", "temperature", 0.0),
        ("context_distillation", "classes", 1.5),
        ("knowledge_distillation", "mixture", 0.0),
        ("knowledge_distillation", "divergence", "kl"),
    ],
)
def test_options_are_checked(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"loss {name}: {option}={value!r} is not allowed"):
        run(name, next(row.given for row in ROWS if row.loss == name), **{option: value})
