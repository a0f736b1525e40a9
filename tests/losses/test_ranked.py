"""Losses of ranked lists: hand-worked values, twins and properties."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlhf_lightning import losses
from rlhf_lightning.losses import needs
from tests.helpers import reference_ranked
from tests.helpers.loss_inputs import Numbers
from tests.helpers.loss_inputs import run as run_pairs
from tests.helpers.ranked_inputs import OPTIONS, RANKED, Item, Lists, gradient, ranked, run
from tests.losses.golden_ranked import AB, ROWS, Golden

#: Losses that see no more of the scores than their order.
ORDER_ONLY = ["best_of_n", "plackett_luce", "rrhf"]
WITH_REFERENCE = ["exo_k", "plackett_luce"]


def test_names() -> None:
    assert set(RANKED) >= {"best_of_n", "exo_k", "plackett_luce", "pro", "reward_weighted", "rrhf"}
    assert {row.loss for row in ROWS} == set(RANKED)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_value(row: Golden) -> None:
    for dtype in (torch.float32, torch.float64):
        loss = run(row.loss, replace(AB, running=row.running), dtype, **row.options).loss
        torch.testing.assert_close(loss.detach().double(), torch.tensor(row.expected).double(), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", RANKED)
@settings(max_examples=40, deadline=None)
@given(batch=ranked(), data=st.data())
def test_equals_plain_loop(name: str, batch: Lists, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    expected = getattr(reference_ranked, name)(batch, **options)
    assert run(name, batch, **options).loss.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", RANKED)
def test_every_option_is_drawn(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(OPTIONS[name])


@pytest.mark.parametrize("name", RANKED)
def test_every_loss_declares_itself(name: str) -> None:
    assert needs(getattr(losses, name)) <= losses.INPUTS.keys()
    losses.validate(getattr(losses, name))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pro", {"temperature": "none"}, r"one of \['dynamic', 'fixed'\]"),
        ("rrhf", {"rank_weight": -1.0}, r"loss rrhf: rank_weight=-1.0 is not allowed"),
        ("exo_k", {"score_beta": 0.0}, r"score_beta=0.0 is not allowed, it must be a number in \(0, inf\)"),
        ("best_of_n", {"top_fraction": 1.5}, r"top_fraction=1.5 is not allowed, it must be a number in \[0, 1\]"),
        ("reward_weighted", {"normalise": "step"}, r"one of \['group', 'running'\]"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.validate(partial(getattr(losses, name), **options))
    with pytest.raises(ValueError, match=message):
        run(name, AB, **options)


@pytest.mark.parametrize("name", RANKED)
@settings(max_examples=15, deadline=None)
@given(batch=ranked(), data=st.data())
def test_neither_the_order_of_responses_nor_empty_slots_matter(name: str, batch: Lists, data: st.DataObject) -> None:
    """Fails when slots are taken for ranks, ties are broken by position, or an empty slot takes part."""
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    mixed = replace(batch, lists=[data.draw(st.permutations(items)) for items in batch.lists], slots=batch.slots + 2)
    torch.testing.assert_close(run(name, mixed, **options).loss, run(name, batch, **options).loss)


@pytest.mark.parametrize("name", RANKED)
@settings(max_examples=15, deadline=None)
@given(batch=ranked(least=2), data=st.data())
def test_lists_do_not_see_each_other(name: str, batch: Lists, data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries(OPTIONS[name]))
    parts = [run(name, replace(batch, lists=[items], slots=batch.slots), **options).loss for items in batch.lists]
    torch.testing.assert_close(torch.cat(parts), run(name, batch, **options).loss)


@pytest.mark.parametrize("name", sorted({*RANKED} & {"pro", "exo_k", "reward_weighted", *ORDER_ONLY}))
@settings(max_examples=15, deadline=None)
@given(batch=ranked(), shift=st.sampled_from([-4.0, 8.0]))
def test_common_shift_of_the_scores_changes_nothing(name: str, batch: Lists, shift: float) -> None:
    moved = batch.map(lambda item: replace(item, score=item.score + shift))
    torch.testing.assert_close(run(name, moved).loss, run(name, batch).loss)


@pytest.mark.parametrize("name", ORDER_ONLY)
@settings(max_examples=15, deadline=None)
@given(batch=ranked())
def test_only_the_order_of_the_scores_counts(name: str, batch: Lists) -> None:
    cubed = batch.map(lambda item: replace(item, score=7 * item.score**3))
    torch.testing.assert_close(run(name, cubed).loss, run(name, batch).loss)


@pytest.mark.parametrize("name", WITH_REFERENCE)
@settings(max_examples=15, deadline=None)
@given(batch=ranked(), nats=st.floats(-5, 5))
def test_common_shift_of_the_log_ratios_changes_nothing(name: str, batch: Lists, nats: float) -> None:
    moved = batch.map(lambda item: replace(item, policy=[x + nats / len(item.policy) for x in item.policy]))
    torch.testing.assert_close(run(name, moved, beta=0.7).loss, run(name, batch, beta=0.7).loss)


def as_pairs(batch: Lists) -> Numbers:
    """Lists of two as pairs, the better response chosen."""
    ordered = [sorted(items, key=lambda item: -item.score) for items in batch.lists]
    return Numbers(
        *([[getattr(items[slot], name) for items in ordered] for slot in (0, 1)][k]
          for name in ("policy", "reference") for k in (0, 1))
    )  # fmt: skip


@st.composite
def two(draw: st.DrawFn) -> Lists:
    """Lists of two responses with different scores."""
    batch = draw(ranked(longest=4))
    lists = [(items * 2)[:2] for items in batch.lists]
    gap = draw(st.sampled_from([-1.5, 0.25, 2.0]))
    return Lists([[items[0], replace(items[1], score=items[0].score + gap)] for items in lists])


@settings(max_examples=25, deadline=None)
@given(batch=two(), beta=st.floats(0.05, 2))
def test_plackett_luce_of_two_is_dpo(batch: Lists, beta: float) -> None:
    pairs = as_pairs(batch)
    torch.testing.assert_close(run("plackett_luce", batch, beta=beta).loss, run_pairs("dpo", pairs, beta=beta).loss)


@settings(max_examples=25, deadline=None)
@given(batch=two(), beta=st.floats(0.05, 2), score_beta=st.floats(0.2, 2))
def test_exo_k_of_two_is_exo(batch: Lists, beta: float, score_beta: float) -> None:
    """With the flip rate that the scores' softmax gives the worse response."""
    gap = abs(batch.lists[0][0].score - batch.lists[0][1].score)
    flip = 1 / (1 + torch.tensor(gap / score_beta, dtype=torch.float64).exp().item())
    loss = run("exo_k", batch, beta=beta, score_beta=score_beta).loss
    torch.testing.assert_close(loss, run_pairs("exo", as_pairs(batch), beta=beta, label_smoothing=flip).loss)


def test_exo_k_is_zero_where_the_distributions_agree() -> None:
    even = Lists([[Item([-1.0], [-1.0 - 0.5 * score], score) for score in (2.0, 0.0, -1.0)]])
    assert run("exo_k", even, beta=1.0, score_beta=2.0).loss.item() == pytest.approx(0.0, abs=1e-9)


#: Step 0: log-ratios are 0. n(n-1)/2 comparisons of a strict order of n: sum of log k for k up to n.
def test_value_at_step_0() -> None:
    start = AB.map(lambda item: replace(item, reference=item.policy))
    output = run("plackett_luce", start)
    assert output.loss.tolist() == pytest.approx([1.791759, 0.693147], abs=1e-5)  # log 6, log 2
    assert not output.reward.any()


@pytest.mark.parametrize("name", RANKED)
def test_the_best_response_is_raised(name: str) -> None:
    slope = gradient(name, AB).tolist()
    assert slope[0] < 0 and slope[1] < 0, "A0"  # noqa: PT018
    assert all(x < 0 for x in slope[5:8]), "B0"


@pytest.mark.parametrize("name", ["plackett_luce", "pro", "rrhf", "exo_k"])
def test_the_worst_response_is_lowered(name: str) -> None:
    options: dict[str, Any] = {"score_beta": 1.0} if name == "exo_k" else {}
    assert all(x > 0 for x in gradient(name, AB, **options).tolist()[8:]), "B1"


@pytest.mark.parametrize("name", RANKED)
def test_a_list_of_ties_or_of_one_teaches_no_order(name: str) -> None:
    """Its ranking part is 0 and so is its gradient; a likelihood part may remain."""
    tied = Lists([[replace(item, score=1.0) for item in AB.lists[0]], AB.lists[1][:1]], slots=4)
    off: dict[str, Any] = {"pro": {"nll_weight": 0.0}, "rrhf": {"nll_weight": 0.0}}.get(name, {})
    slope = gradient(name, tied, **off)
    assert slope.isfinite().all()
    if name in {"pro", "rrhf", "plackett_luce"}:
        assert run(name, tied, **off).loss.abs().max() < 1e-9
        assert not slope.any()


@pytest.mark.parametrize("name", RANKED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [-1e4, -1e-6, 0.0])
def test_finite_at_extremes(name: str, dtype: torch.dtype, value: float) -> None:
    other = -1.0 - value
    lists = [[Item([value], [-1.0], 50.0), Item([other], [-1.0], -50.0), Item([-1.0], [-1.0], 0.0)], AB.lists[1]]
    variants: list[dict[str, Any]] = [{}, {"normalise": "running"}] if name == "reward_weighted" else [{}]
    for options in variants:
        batch = Lists(lists, running=(0.0, 1.0, 3.0))
        assert run(name, batch, dtype, **options).loss.isfinite().all()
        assert gradient(name, batch, dtype, **options).isfinite().all()


@pytest.mark.parametrize("name", sorted({*RANKED} - {"nash_md"}))  # its log-ratios are constants for the gradient
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_gradient_is_the_derivative_of_the_value(name: str, data: st.DataObject) -> None:
    """Central differences in float64, at the first token of the first response."""
    batch = data.draw(ranked(most=2))
    options, step = data.draw(st.fixed_dictionaries(OPTIONS[name])), 1e-6

    def value(change: float) -> float:
        first, *others = batch.lists[0]
        moved = replace(first, policy=[first.policy[0] + change, *first.policy[1:]])
        return run(name, replace(batch, lists=[[moved, *others], *batch.lists[1:]]), **options).loss.mean().item()

    left, middle, right = value(-step), value(0.0), value(step)
    assume(abs(left + right - 2 * middle) < 1e-9)  # no kink of a hinge in between
    analytic = gradient(name, batch, **options)[0].item()
    assert (right - left) / (2 * step) == pytest.approx(analytic, rel=1e-4, abs=1e-4)


def test_rewards_and_diagnostics() -> None:
    rewards = {
        "plackett_luce": [0.2, -0.3, 0.1, -0.2, 0.1],
        "exo_k": [1.0, -1.5, 0.5, -1.0, 0.5],
        **{key: [-1.5, -4.0, -1.0, -2.0, -0.5] for key in ["pro", "rrhf", "best_of_n", "reward_weighted"]},
    }
    for name, expected in rewards.items():
        output = run(name, AB)
        assert output.reward[[0, 1, 2, 3, 4]].tolist() == pytest.approx(expected)
        assert not any(value.requires_grad for value in (output.reward, *output.diagnostics.values()))
    ranks = run("plackett_luce", AB, beta=0.5).diagnostics
    # A0 and B0 are of rank 1, A2 of rank 2; nothing is below A1 and B1
    assert ranks["loss/rank_1"].tolist() == pytest.approx([0.523909, 1.701413], abs=1e-6)
    assert ranks["loss/rank_2"].tolist() == pytest.approx([0.126928], abs=1e-6)
    assert ranks["loss/ranking"].tolist() == pytest.approx([0.650837, 1.701413], abs=1e-6)
    assert run("pro", AB).diagnostics["nll"].tolist() == [3.0, 6.0]
    assert run("rrhf", AB).diagnostics["loss/ranking"].tolist() == [0.5, 1.5]
    kept = run("best_of_n", AB, top_fraction=0.67).diagnostics
    assert kept["score/selected"].tolist() == pytest.approx([1.5, 1.0])
    assert kept["score/mean"].tolist() == pytest.approx([1.0, 0.75])
    weighted = run("reward_weighted", AB)
    assert weighted.observed.tolist() == [2.0, 0.0, 1.0, 1.0, 0.5]
    assert weighted.diagnostics["weight"].tolist() == pytest.approx(
        [0.665241, 0.090031, 0.244728, 0.622459, 0.377541], abs=1e-6
    )
    assert weighted.diagnostics["score/selected"].tolist() == pytest.approx([1.575210, 0.811230], abs=1e-5)


@pytest.mark.parametrize("name", RANKED)
def test_rewards_of_empty_slots_are_finite(name: str) -> None:
    batch = Lists([[Item([-1.0], [-1.5], 2.0), Item([-2.0], [-1.0], 1.0)], [Item([-1.0], [-2.0], 1.0)]])
    assert run(name, batch).reward.isfinite().all()


#: Options beside the defaults under which a list must be looked at as a whole.
OTHER_OPTIONS = {"reward_weighted": {"normalise": "running"}, "pro": {"nll_scale": "none", "aggregate": "sum"}}


@pytest.mark.parametrize("options", [{}, OTHER_OPTIONS], ids=["defaults", "others"])
@pytest.mark.parametrize("name", RANKED)
def test_a_list_without_responses_costs_nothing(name: str, options: dict[str, dict[str, Any]]) -> None:
    """Fails where a softmax or a mean over no response is nan, also if only its gradient is."""
    filled = [Item([-1.0], [-1.5], 2.0), Item([-2.0], [-1.0], 1.0)]
    batch, alone = (Lists(lists, running=(1.0, 1.0, 5.0)) for lists in ([filled, []], [filled]))
    chosen = options.get(name, {})
    assert run(name, batch, **chosen).loss.tolist() == [run(name, alone, **chosen).loss.item(), 0.0]
    assert torch.equal(2 * gradient(name, batch, **chosen), gradient(name, alone, **chosen))
    assert all(value.isfinite().all() for value in run(name, batch, **chosen).diagnostics.values())


@pytest.mark.parametrize("name", ["exo_k", "plackett_luce"])
def test_a_list_of_one_response_has_nothing_to_rank(name: str) -> None:
    batch = Lists([[Item([-1.0], [-1.5], 2.0)], [Item([-1.0, -3.0], [-1.5, -1.0], 0.0)]], slots=3)
    assert run(name, batch).loss.tolist() == [0.0, 0.0]
    assert gradient(name, batch).tolist() == [0.0, 0.0, 0.0]


def test_score_of_what_the_weights_select() -> None:
    """Scores 1 and 3 against a mean of 2 weigh 1/e and e; the empty slot weighs nothing."""
    items = [Item([-1.0], [-1.0], 1.0), Item([-1.0], [-1.0], 3.0)]
    batch = Lists([items], running=(2.0, 1.0, 5.0), slots=3)
    selected = run("reward_weighted", batch, normalise="running").diagnostics["score/selected"]
    assert selected.item() == pytest.approx((1 / math.e + 3 * math.e) / (1 / math.e + math.e))
