"""Losses of labelled responses: hand-worked values, twins, properties, step 0, and TRL 1.16 on the same numbers."""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_lightning import losses
from rlhf_lightning.losses import needs
from tests.helpers import reference_unpaired
from tests.helpers.unpaired_inputs import OPTIONS, UNPAIRED, Labelled, gradient, inputs, labelled, run
from tests.losses.golden_unpaired import ABCD, ROWS, Golden

LN2 = math.log(2)
TRL = json.loads((Path(__file__).parent / "trl_unpaired.json").read_text())


def test_names() -> None:
    assert UNPAIRED == ["apo_zero_unpaired", "bco", "kto", "unlikelihood"]
    assert {row.loss for row in ROWS} == set(UNPAIRED)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_value(row: Golden) -> None:
    for dtype in (torch.float32, torch.float64):
        loss = run(row.loss, replace(ABCD, **row.given), dtype, **row.options).loss
        torch.testing.assert_close(loss.detach().double(), torch.tensor(row.expected).double(), atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize("name", UNPAIRED)
@settings(max_examples=40, deadline=None)
@given(batch=labelled(), data=st.data())
def test_equals_plain_loop(name: str, batch: Labelled, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    expected = getattr(reference_unpaired, name)(batch, **options)
    assert run(name, batch, **options).loss.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", UNPAIRED)
def test_every_option_is_drawn(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(OPTIONS[name])


@pytest.mark.parametrize("name", UNPAIRED)
def test_every_loss_declares_itself(name: str) -> None:
    assert needs(getattr(losses, name)) <= losses.INPUTS.keys()
    losses.validate(getattr(losses, name))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kto", {"beta": 0.0}, r"loss kto: beta=0.0 is not allowed, it must be a number in \(0, inf\)"),
        ("kto", {"undesirable_weight": -1.0}, r"undesirable_weight=-1.0 is not allowed"),
        ("bco", {"delta": "mean"}, r"one of \['running', 'zero'\]"),
        ("unlikelihood", {"reduction": "mean"}, r"one of \['token_mean', 'response_mean', 'sum'\]"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.validate(partial(getattr(losses, name), **options))
    with pytest.raises(ValueError, match=message):
        run(name, ABCD, **options)


@pytest.mark.parametrize(("name", "expected"), [("kto", 0.5), ("apo_zero_unpaired", 0.5), ("bco", LN2)])
def test_value_at_step_0(name: str, expected: float) -> None:
    start = replace(ABCD, reference=ABCD.policy)
    output = run(name, start, torch.float32)
    torch.testing.assert_close(output.loss, torch.full((4,), expected))
    assert torch.equal(output.reward, torch.zeros(4))


@pytest.mark.parametrize("name", UNPAIRED)
def test_first_step_raises_desirable_and_lowers_undesirable(name: str) -> None:
    slope = gradient(name, replace(ABCD, reference=ABCD.policy)).tolist()
    labels = [label for row, label in zip(ABCD.policy, ABCD.desirable, strict=True) for _ in row]
    assert all((x < 0) == (label == 1.0) and x != 0 for x, label in zip(slope, labels, strict=True))


@pytest.mark.parametrize("name", UNPAIRED)
@settings(max_examples=15, deadline=None)
@given(batch=labelled(least=2), data=st.data())
def test_order_and_cut_do_not_matter(name: str, batch: Labelled, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    order = data.draw(st.permutations(range(len(batch))))
    cut = data.draw(st.integers(1, len(batch) - 1))
    whole = run(name, batch, **options)
    parts = [run(name, batch.pick(list(rows)), **options) for rows in (order[:cut], order[cut:])]
    torch.testing.assert_close(torch.cat([part.loss for part in parts]), whole.loss[list(order)])
    torch.testing.assert_close(torch.cat([part.reward for part in parts]), whole.reward[list(order)])


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired", "bco"])
@settings(max_examples=15, deadline=None)
@given(batch=labelled(), nats=st.floats(-3, 3))
def test_only_the_distance_to_the_reference_point_counts(name: str, batch: Labelled, nats: float) -> None:
    """A shift of every log-ratio changes a loss, unless KTO's (or BCO's) point moves along."""
    moved = replace(batch, policy=[[x + nats / len(row) for x in row] for row in batch.policy])
    if name == "kto":
        moved = replace(moved, kl=batch.kl + nats)
    elif name == "bco":
        moved = replace(moved, running=(batch.running[0] + nats, *batch.running[1:]))
    else:
        moved = replace(moved, reference=[[x + nats / len(row) for x in row] for row in batch.reference])
    torch.testing.assert_close(run(name, moved, beta=1.0).loss, run(name, batch, beta=1.0).loss)
    if abs(nats) > 0.1:
        alone = replace(moved, kl=batch.kl, running=batch.running, reference=batch.reference)
        assert (run(name, alone, beta=1.0).loss - run(name, batch, beta=1.0).loss).abs().max() > 1e-5


@settings(max_examples=15, deadline=None)
@given(batch=labelled(), beta=st.floats(0.05, 2))
def test_kto_at_reference_point_0_is_apo_zero(batch: Labelled, beta: float) -> None:
    at_zero = replace(batch, kl=0.0)
    torch.testing.assert_close(run("kto", at_zero, beta=beta).loss, run("apo_zero_unpaired", batch, beta=beta).loss)


def test_kto_saturates_and_its_point_is_a_constant() -> None:
    given_inputs = inputs(replace(ABCD, kl=1.0))
    given_inputs["kl"].requires_grad_(True)
    asked = {need: given_inputs[need] for need in needs(losses.kto)}
    result = losses.kto(**asked)
    result.loss.sum().backward()
    assert given_inputs["kl"].grad is None
    far = Labelled([[-1e4], [-1e4]], [[-1.0], [-1.0]], [1.0, 0.0])
    assert run("kto", far, desirable_weight=3.0).loss.tolist() == pytest.approx([3.0, 0.0])


@pytest.mark.parametrize("name", UNPAIRED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [-1e4, -1e-9, 0.0])
def test_finite_at_extremes(name: str, dtype: torch.dtype, value: float) -> None:
    """Fails when log(1 - p) is formed from p, or a sigmoid from its exponential."""
    for label in (0.0, 1.0):
        batch = Labelled([[value], [value, -1.0]], [[-1.0], [-1.0, -1.0]], [label, label])
        assert run(name, batch, dtype).loss.isfinite().all()
        assert gradient(name, batch, dtype).isfinite().all()


def test_unlikelihood_near_certainty() -> None:
    """log(1 - p) at p = 1 - 1e-5: 1 - exp(x) in float32 is off by percents there; expm1 is not."""
    batch = Labelled([[-1e-5], [-1e-5]], [[-1.0], [-1.0]], [0.0, 0.0])
    assert run("unlikelihood", batch, torch.float32).loss[0].item() == pytest.approx(
        -math.log(-math.expm1(-1e-5)), rel=1e-5
    )


@pytest.mark.parametrize("name", UNPAIRED)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_gradient_is_the_derivative_of_the_value(name: str, data: st.DataObject) -> None:
    """Central differences in float64."""
    batch = data.draw(labelled(most=2))
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    row, step = data.draw(st.integers(0, len(batch) - 1)), 1e-6

    def value(change: float) -> float:
        moved = [list(r) for r in batch.policy]
        moved[row][0] += change
        return run(name, replace(batch, policy=moved), **options).loss.mean().item()

    left, middle, right = value(-step), value(0.0), value(step)
    assume(abs(left + right - 2 * middle) < 1e-9)
    analytic = gradient(name, batch, **options)[sum(len(r) for r in batch.policy[:row])].item()
    assert (right - left) / (2 * step) == pytest.approx(analytic, rel=1e-4, abs=1e-4)


def test_rewards_and_diagnostics() -> None:
    batch = replace(ABCD, kl=1.0, running=(0.25, 1.0, 3.0))
    for name, rewards in {
        "kto": [1.0, -1.5, -1.0, 0.5],
        "apo_zero_unpaired": [1.0, -1.5, -1.0, 0.5],
        "bco": [1.0, -1.5, -1.0, 0.5],
        "unlikelihood": [-1.5, -4.0, -2.0, -1.0],
    }.items():
        options = {} if name == "unlikelihood" else {"beta": 0.5}
        output = run(name, batch, **options)
        assert output.reward.tolist() == pytest.approx(rewards)
        torch.testing.assert_close(output.diagnostics["loss/desirable"], output.loss.detach()[[0, 2]])
        torch.testing.assert_close(output.diagnostics["loss/undesirable"], output.loss.detach()[[1, 3]])
        assert not any(value.requires_grad for value in (output.reward, *output.diagnostics.values()))
    # log-ratios 2, -3, -2, 1 against 1: right, right, wrong, on the point itself
    assert run("kto", batch).diagnostics["reward/accuracy"].tolist() == [1.0, 1.0, 0.0, 0.5]
    # rewards 1, -1.5, -1, 0.5 against 0.25
    assert run("bco", batch, beta=0.5).diagnostics["reward/accuracy"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert run("bco", batch, beta=0.5).diagnostics["delta"].item() == 0.25
    assert run("bco", batch, beta=0.5).observed.tolist() == pytest.approx([1.0, -1.5, -1.0, 0.5])


TRL_LOSSES = {"kto": "kto", "apo_zero_unpaired": "apo_zero_unpaired"}


@pytest.mark.parametrize("batch_name", TRL["batches"])
@pytest.mark.parametrize("setting", TRL["results"])
def test_equals_trl(setting: str, batch_name: str) -> None:
    """The mean loss and its gradient, as TRL 1.16's own KTO trainer computes them from the same log-probs."""
    result = TRL["results"][setting]
    options: dict[str, Any] = {k: v for k, v in result["settings"].items() if k != "loss_type"}
    expected, raw = result["values"][batch_name], dict(TRL["batches"][batch_name])
    mismatched = raw.pop("mismatched_policy"), raw.pop("mismatched_reference")
    ratios = [sum(p) - sum(r) for p, r in zip(*mismatched, strict=True)]
    batch = Labelled(**raw, kl=max(0.0, sum(ratios) / len(ratios)))
    name = TRL_LOSSES[result["settings"]["loss_type"]]
    assert run(name, batch, **options).loss.mean().item() == pytest.approx(expected["loss"], rel=1e-5, abs=1e-5)
    slopes = [x for row in expected["gradient"] for x in row]
    assert gradient(name, batch, **options).tolist() == pytest.approx(slopes, rel=1e-4, abs=1e-5)
