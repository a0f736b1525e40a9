"""Losses of comparisons of rewards: hand-worked values, plain-loop twins, TRL's numbers, and what must always hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning import losses
from rlhf_lightning.losses import (
    apo_reward,
    best_of_k,
    bradley_terry,
    cost,
    k_wise,
    log_exp,
    needs,
    odin,
    token_wise,
    validate,
)
from rlhf_lightning.losses.options import takes
from rlhf_lightning.types import Pair
from tests.helpers.loss_inputs import assert_detached, ragged
from tests.losses.golden_reward import NAN, ROWS, Golden

REWARD_LOSSES = ["apo_reward", "best_of_k", "bradley_terry", "cost", "k_wise", "log_exp", "odin", "token_wise"]
VALUE = st.floats(-4, 4, width=32)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def made(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in ("policy", "token_reward"):
            out[name] = Pair(*(ragged(rows, dtype) for rows in value))
        else:
            out[name] = torch.tensor(value, dtype=torch.long if name == "prefix" else dtype)
            out[name].requires_grad_(name in ("reward", "overlap"))
    return out


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_golden_value(row: Golden) -> None:
    for dtype in (torch.float32, torch.float64):
        output = getattr(losses, row.loss)(**made(row.inputs, dtype), **row.options)
        assert_detached(output)
        loss = output.loss
        torch.testing.assert_close(loss.detach().double(), torch.tensor(row.expected).double(), atol=2e-6, rtol=2e-6)


def test_every_loss_has_a_golden_row() -> None:
    assert {row.loss for row in ROWS} == set(REWARD_LOSSES)


def test_optional_inputs_are_not_needed() -> None:
    assert needs(bradley_terry) == {"reward"}
    assert takes(bradley_terry) == {"reward", "margin", "policy"}
    validate(bradley_terry)


def test_an_option_says_what_it_lacks() -> None:
    reward = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"method\.loss\.margin_scale .* margin of each pair"):
        bradley_terry(reward, margin_scale=1.0)
    with pytest.raises(ValueError, match=r"method\.loss\.lm_weight"):
        bradley_terry(reward, lm_weight=1.0)
    with pytest.raises(ValueError, match=r"method\.head\.outputs=2"):
        odin(torch.zeros(1, 2, 3), torch.ones(1, 2), torch.tensor(0.0))


pairs = st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=5)


@given(pairs, st.floats(-50, 50))
def test_a_common_shift_changes_nothing(rows: list[tuple[float, float]], shift: float) -> None:
    reward = torch.tensor(rows, dtype=torch.float64)
    for loss in (bradley_terry, log_exp):
        torch.testing.assert_close(loss(reward + shift).loss, loss(reward).loss)
    score = torch.tensor([[2.0, 1.0]] * len(rows))
    for loss in (k_wise, best_of_k):
        torch.testing.assert_close(loss(reward + shift, score).loss, loss(reward, score).loss)


def test_a_shift_changes_centring_and_cost() -> None:
    reward, safe = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert not torch.allclose(bradley_terry(reward + 1, centering=0.1).loss, bradley_terry(reward, centering=0.1).loss)
    assert not torch.allclose(cost(reward + 1, safe).loss, cost(reward, safe).loss)


@given(pairs)
def test_log_exp_is_log_sigmoid(rows: list[tuple[float, float]]) -> None:
    one, other = (torch.tensor(rows, requires_grad=True) for _ in range(2))
    a, b = log_exp(one).loss, bradley_terry(other).loss
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.autograd.grad(a.sum(), one), torch.autograd.grad(b.sum(), other))


@given(pairs, st.data(), st.floats(0, 2), st.floats(0, 2), st.integers(1, 5))
def test_apo_equals_plain_loop(
    rows: list[tuple[float, float]], data: st.DataObject, annotated: float, adversarial: float, samples: int
) -> None:
    drawn = [data.draw(st.sampled_from([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])) for _ in rows]
    reward = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    weights = {"annotated_weight": annotated, "adversarial_weight": adversarial, "samples": samples}
    output = apo_reward(reward, torch.tensor(drawn, dtype=torch.float64), **weights)
    expected = [
        (adversarial / samples if policy == (0.0, 1.0) else annotated) * softplus(worse - better)
        for (better, worse), policy in zip(rows, drawn, strict=True)
    ]
    assert output.loss.tolist() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(output.loss.sum(), reward)
    torch.testing.assert_close(slope.sum(1), torch.zeros(len(rows), dtype=torch.float64), atol=1e-9, rtol=0)


def test_both_kinds_of_apos_pairs_share_one_denominator() -> None:
    """A human pair with d = 1 and an APO pair with d = .5: .313262/2 + .025 * .474077/2; two means give .325114."""
    output = apo_reward(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert output.loss.mean().item() == pytest.approx(0.162557, abs=1e-6)
    assert output.diagnostics["reward/accuracy_annotated"].tolist() == [1.0]
    lost = apo_reward(torch.tensor([[1.0, 0.0], [-0.5, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])).diagnostics
    assert (lost["reward/accuracy_annotated"].item(), lost["reward/accuracy_adversarial"].item()) == (1.0, 0.0)


@given(pairs)
def test_apo_without_weights_of_its_own_is_bradley_terry(rows: list[tuple[float, float]]) -> None:
    reward = torch.tensor(rows, dtype=torch.float64)
    mixed = torch.tensor([[0.0, float(at % 2)] for at in range(len(rows))])
    loss = apo_reward(reward, mixed, adversarial_weight=1.0, samples=1).loss
    torch.testing.assert_close(loss, bradley_terry(reward).loss)


@given(pairs)
def test_two_responses_are_a_pair(rows: list[tuple[float, float]]) -> None:
    """K-wise and best-of-K with K = 2 are Bradley-Terry, whichever slot is the better one."""
    reward = torch.tensor(rows, dtype=torch.float64)
    expected = bradley_terry(reward).loss
    score = torch.tensor([[1.0, 0.0]] * len(rows))
    for loss in (k_wise, best_of_k):
        torch.testing.assert_close(loss(reward, score).loss, expected)
        torch.testing.assert_close(loss(reward.flip(1), score.flip(1)).loss, expected)


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    slots = draw(st.integers(2, 4))
    count = draw(st.integers(1, 3))
    rewards = [[draw(VALUE) for _ in range(slots)] for _ in range(count)]
    scores = [[float(draw(st.integers(0, 3))) for _ in range(slots)] for _ in range(count)]
    for row in scores:
        for slot in range(draw(st.integers(1, slots)), slots):
            row[slot] = NAN
    return rewards, scores


def k_wise_twin(reward: list[float], score: list[float]) -> float:
    terms = [
        softplus(reward[j] - reward[i]) for i in range(len(score)) for j in range(len(score)) if score[i] > score[j]
    ]
    return sum(terms) / len(terms) if terms else 0.0


def best_of_k_twin(reward: list[float], score: list[float]) -> float:
    there = [i for i, s in enumerate(score) if not math.isnan(s)]
    top = max(score[i] for i in there)
    best = [i for i in there if score[i] == top]
    total = math.log(sum(math.exp(reward[i]) for i in there))
    return sum(total - reward[i] for i in best) / len(best)


@given(lists())
def test_lists_equal_plain_loops(rows: tuple[list[list[float]], list[list[float]]]) -> None:
    reward = torch.tensor(rows[0], dtype=torch.float64, requires_grad=True)
    score = torch.tensor(rows[1])
    for loss, twin in ((k_wise, k_wise_twin), (best_of_k, best_of_k_twin)):
        result = loss(reward, score).loss
        assert result.tolist() == pytest.approx([twin(r, s) for r, s in zip(*rows, strict=True)], rel=1e-6, abs=1e-9)
        (gradient,) = torch.autograd.grad(result.sum(), reward)
        assert gradient.isfinite().all()
        assert not gradient[score.isnan()].any(), "an empty slot has no gradient"


def token_wise_twin(chosen: list[float], rejected: list[float], prefix: int) -> float:
    longest = max(len(chosen), len(rejected))
    at = [(chosen[min(t, len(chosen) - 1)], rejected[min(t, len(rejected) - 1)]) for t in range(prefix, longest)]
    return sum(softplus(r - c) for c, r in at) / len(at) if at else 0.0


values = st.lists(VALUE, min_size=1, max_size=5)


@given(st.lists(st.tuples(values, values, st.integers(0, 5)), min_size=1, max_size=4))
def test_token_wise_equals_a_plain_loop(rows: list[tuple[list[float], list[float], int]]) -> None:
    rows = [(c, r, min(p, len(c), len(r))) for c, r, p in rows]
    pair = Pair(ragged([row[0] for row in rows]), ragged([row[1] for row in rows]))
    result = token_wise(pair, torch.tensor([row[2] for row in rows]))
    assert result.loss.tolist() == pytest.approx([token_wise_twin(*row) for row in rows], rel=1e-6, abs=1e-9)
    assert result.chosen_reward.tolist() == pytest.approx([row[0][-1] for row in rows])
    assert result.rejected_reward.tolist() == pytest.approx([row[1][-1] for row in rows])


@given(pairs, st.data())
def test_cost_equals_a_plain_loop(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    safe = [tuple(data.draw(st.sampled_from([(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]))) for _ in rows]
    expected = [
        softplus(s - u) + softplus((2 * a - 1) * s) + softplus((2 * b - 1) * u) + 0.001 * (s * s + u * u) / 2
        for (s, u), (a, b) in zip(rows, safe, strict=True)
    ]
    result = cost(torch.tensor(rows, dtype=torch.float64), torch.tensor(safe))
    assert result.loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_signs_of_costs_are_counted() -> None:
    result = cost(torch.tensor([[-0.5, 1.5], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert result.diagnostics["reward/accuracy_sign"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert result.chosen_reward.tolist() == [0.5, -1.0], "a reward is a negative cost"
    assert result.rejected_reward.tolist() == [-1.5, -2.0]


def test_ties_count_half_in_lists_and_signs() -> None:
    """Fails where a tie is wrong, or right for the response that stands first."""
    tied, score = torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    for loss in (k_wise, best_of_k):
        assert [loss(tied, s).diagnostics["reward/accuracy"].tolist() for s in (score, score.flip(1))] == [[0.5], [0.5]]
    result = cost(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert result.diagnostics["reward/accuracy_sign"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("loss", [k_wise, best_of_k])
def test_a_list_without_responses_costs_nothing(loss: Any) -> None:
    reward = torch.tensor([[1.0, 0.5], [0.0, 0.0], [2.0, 0.0]], requires_grad=True)
    score = torch.tensor([[1.0, 2.0], [math.nan, math.nan], [1.0, math.nan]])
    result = loss(reward, score)
    assert result.loss[1:].tolist() == [0.0, 0.0]
    result.loss.sum().backward()
    assert reward.grad is not None
    assert reward.grad[1:].tolist() == [[0.0, 0.0]] * 2
    assert result.diagnostics["reward/accuracy"].isfinite().all()


def test_accuracy_of_lists() -> None:
    reward, score = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]])
    assert k_wise(reward, score).diagnostics["reward/accuracy"].tolist() == [1.0, 0.0, 0.0]
    assert best_of_k(reward, score).diagnostics["reward/accuracy"].tolist() == [0.0]
    assert best_of_k(reward.flip(1), score.flip(1).neg()).diagnostics["reward/accuracy"].tolist() == [1.0]
    empty = best_of_k(reward, torch.tensor([[3.0, 2.0, NAN]]))
    assert empty.diagnostics["reward/accuracy"].tolist() == [1.0], "an empty slot is not chosen, whatever its reward"


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_values_and_gradients_stay_finite(gap: float) -> None:
    reward = torch.tensor([[gap, 0.0]], requires_grad=True)
    score, safe = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    results: list[Tensor] = [
        bradley_terry(reward).loss,
        log_exp(reward).loss,
        k_wise(reward, score).loss,
        best_of_k(reward, score).loss,
        cost(reward, safe).loss,
        odin(reward[..., None].expand(1, 2, 2), torch.tensor([[1.0, 2.0]]), torch.tensor(0.0)).loss,
    ]
    for result in results:
        assert result.isfinite().all()
        (gradient,) = torch.autograd.grad(result.sum(), reward, retain_graph=True)
        assert gradient.isfinite().all()


def test_odin_is_bradley_terry_of_the_sum_without_its_terms() -> None:
    reward = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))
    length = torch.randint(1, 9, (4, 2), generator=torch.Generator().manual_seed(1)).float()
    result = odin(reward, length, torch.tensor(0.5), length_weight=0.0, orthogonality_weight=0.0)
    torch.testing.assert_close(result.loss, bradley_terry(reward.sum(-1)).loss)
    assert torch.equal(result.chosen_reward, reward[:, 0, 0])
    expected = torch.corrcoef(torch.stack([reward[..., 0].flatten(), length.flatten()]))[0, 1]
    for scaled in (reward, 1e-3 * reward):  # a correlation has no scale
        result = odin(scaled, length, torch.tensor(0.5))
        torch.testing.assert_close(result.diagnostics["reward/quality_length_correlation"], expected)


@settings(deadline=None, max_examples=10)
@given(pairs)
def test_gradients_match_finite_differences(rows: list[tuple[float, float]]) -> None:
    reward = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    score = torch.tensor([[1.0, 0.0]] * len(rows))
    safe = torch.tensor([[1.0, 0.0]] * len(rows), dtype=torch.float64)
    torch.autograd.gradcheck(lambda r: bradley_terry(r, centering=0.1).loss, reward)
    torch.autograd.gradcheck(lambda r: k_wise(r, score).loss, reward)
    torch.autograd.gradcheck(lambda r: best_of_k(r, score).loss, reward)
    torch.autograd.gradcheck(lambda r: cost(r, safe).loss, reward)


TRL = json.loads((Path(__file__).parent / "trl_reward_losses.json").read_text())


@pytest.mark.parametrize("name", sorted(TRL["settings"]))
def test_trl_computes_the_same(name: str) -> None:
    """Loss, gradient, metrics of TRL 1.16's RewardTrainer on the same rewards (benchmarks/trl_reward_values.py)."""
    setting = TRL["settings"][name]
    reward = torch.tensor(TRL["rewards"], requires_grad=True)
    margin = torch.tensor(TRL["margin"]) if setting["margin"] else None
    result = bradley_terry(
        reward, margin, margin_scale=float(setting["margin"]), centering=setting["center_rewards_coefficient"] or 0.0
    )
    loss = result.loss.mean()
    assert loss.item() == pytest.approx(setting["loss"], abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, reward)
    torch.testing.assert_close(gradient, torch.tensor(setting["gradient"]), atol=1e-5, rtol=1e-5)
    margins = result.chosen_reward - result.rejected_reward
    assert (margins > 0).float().mean().item() == pytest.approx(setting["accuracy"])
    assert margins.mean().item() == pytest.approx(setting["margin_metric"], abs=1e-6)
