"""Token-level losses: hand-worked values, plain-loop twins, and what must hold whatever the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lightning.losses import cringe, cut, cut_paper, pairwise_cringe
from rlhf_lightning.losses.judgment import detected
from rlhf_lightning.losses.token_contrast import contrasted
from rlhf_lightning.types import GroupLoss, Pair, PreferenceLoss
from tests.helpers import reference_token as plain
from tests.helpers.loss_inputs import assert_detached, run
from tests.helpers.loss_strategies import batches, floats
from tests.helpers.reference_token import Position, Response, Row
from tests.helpers.token_inputs import Policy, judged
from tests.losses.golden_token import BAD, CRINGE, CUT, GOOD, JUDGED, PAIRWISE, PLAIN, Golden

VOCABULARY = 5
JUDGMENT = {"cut": cut, "cut_paper": cut_paper}


def binary(
    responses: list[Response], desirable: list[int], mean_length: float | None = None, **options: Any
) -> GroupLoss:
    policy, label = Policy(responses, mean_length), torch.tensor(desirable, dtype=torch.float64)
    return cringe(policy.log_probs, label, policy.top(options.get("k", 1) + 1, label == 0), **options)


def pairwise(pairs: list[tuple[Response, Response]], **options: Any) -> PreferenceLoss:
    chosen, rejected = Policy([w for w, _ in pairs]), Policy([r for _, r in pairs])
    return pairwise_cringe(Pair(chosen.log_probs, rejected.log_probs), rejected.top(options.get("k", 5) + 1), **options)


def close(actual: Tensor, expected: list[float]) -> None:
    assert actual.tolist() == pytest.approx(expected, abs=2e-6)


def check(row: Golden, output: GroupLoss | PreferenceLoss) -> None:
    close(output.loss, row.expected)
    for name, expected in row.diagnostics.items():
        close(output.diagnostics[name], expected)
    assert_detached(output)


@pytest.mark.parametrize("row", CRINGE, ids=str)
def test_golden_cringe(row: Golden) -> None:
    output = binary([GOOD, BAD], [1, 0], **row.options)
    check(row, output)
    close(output.reward, [-3.0, -2.815212])


@pytest.mark.parametrize("row", PAIRWISE, ids=str)
def test_golden_pairwise_cringe(row: Golden) -> None:
    output = pairwise([(GOOD, BAD)], **row.options)
    check(row, output)
    close(output.chosen_reward, [-3.0])
    close(output.rejected_reward, [-2.815212])


@pytest.mark.parametrize("row", CUT, ids=str)
def test_golden_cut(row: Golden) -> None:
    output = JUDGMENT[row.loss](judged(row.rows), **row.options)
    check(row, output)
    close(output.reward, [sum(alone) for _, alone in row.rows])


# ---- plain-loop twins


@st.composite
def positions(draw: st.DrawFn) -> Position:
    """Logits that differ, so that who is among the k highest is no matter of rounding."""
    logits = draw(st.permutations([2.0, 0.75, 0.25, -0.5, -1.5]))
    shift = draw(floats(-0.125, 0.125))
    return Position([z + shift * i for i, z in enumerate(logits)], draw(st.integers(0, VOCABULARY - 1)))


RESPONSES = st.lists(positions(), min_size=1, max_size=4)
K = st.integers(1, VOCABULARY + 1)


def sampled(policy: Policy, k: int, seed: int) -> list[list[int]]:
    """The alternatives that a loss of this seed takes, response by response."""
    torch.manual_seed(seed)
    top = policy.top(k + 1)
    token = contrasted(top, k).token
    return [token[top.sequence == i].tolist() for i in range(policy.count)]


@settings(max_examples=40, deadline=None)
@given(bad=st.lists(RESPONSES, min_size=1, max_size=3), good=st.lists(RESPONSES, max_size=2), k=K, data=st.data())
def test_cringe_equals_plain_loop(bad: list[Response], good: list[Response], k: int, data: st.DataObject) -> None:
    alpha, seed = data.draw(floats(0.0, 2.0)), data.draw(st.integers(0, 99))
    alternatives = sampled(Policy(bad), k, seed)
    expected = plain.cringe([*bad, *good], [0] * len(bad) + [1] * len(good), alternatives + [[]] * len(good), alpha)
    torch.manual_seed(seed)
    output = binary([*bad, *good], [0] * len(bad) + [1] * len(good), alpha=alpha, k=k)
    assert output.loss.tolist() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(RESPONSES, RESPONSES), min_size=1, max_size=3), k=K, data=st.data())
def test_pairwise_cringe_equals_plain_loop(pairs: list[tuple[Response, Response]], k: int, data: st.DataObject) -> None:
    options = {
        "alpha": data.draw(floats(0.0, 2.0)),
        "threshold": data.draw(floats(-4.0, 4.0)),
        "tau": data.draw(floats(0.5, 8.0)),
        "gate": data.draw(st.sampled_from(["soft", "hard"])),
    }
    margins = [plain.likelihood(chosen) - plain.likelihood(rejected) for chosen, rejected in pairs]
    # A hard gate jumps at its threshold, where the rounding of a sum decides.
    assume(options["gate"] == "soft" or all(abs(margin - options["threshold"]) > 1e-6 for margin in margins))
    seed = data.draw(st.integers(0, 99))
    alternatives = sampled(Policy([rejected for _, rejected in pairs]), k, seed)
    torch.manual_seed(seed)
    loss = pairwise(pairs, k=k, **options).loss
    assert loss.tolist() == pytest.approx(plain.pairwise_cringe(pairs, alternatives, **options), rel=1e-6)


LOG_PROB = floats(-4.0, -0.0625)


@st.composite
def judged_rows(draw: st.DrawFn) -> Row:
    length = draw(st.integers(1, 4))
    behind, alone = (draw(st.lists(LOG_PROB, min_size=length, max_size=length)) for _ in range(2))
    return (behind if draw(st.booleans()) else [], alone)


@pytest.mark.parametrize("name", JUDGMENT)
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(judged_rows(), min_size=1, max_size=4), data=st.data())
def test_cut_equals_plain_loop(name: str, rows: list[Row], data: st.DataObject) -> None:
    options = {"threshold": data.draw(floats(0.5, 4.0)), "unlikelihood_weight": data.draw(floats(0.0, 2.0))}
    if name == "cut_paper":
        options["gamma"] = data.draw(floats(0.0, 2.0))
    loss = JUDGMENT[name](judged(rows), **options).loss
    assert loss.tolist() == pytest.approx(getattr(plain, name)(rows, **options), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(batch=batches(), weight=floats(0.0, 2.0), reduction=st.sampled_from(["token_mean", "response_mean", "sum"]))
def test_odds_ratio_is_orpo(batch: Any, weight: float, reduction: str) -> None:
    """It is named after its data, not after its formula; only the rewards of ORPO are scaled."""
    ours = run("odds_ratio_judgment", batch, weight=weight, nll_reduction=reduction)
    orpos = run("orpo", batch, beta=weight, nll_reduction=reduction)
    assert torch.equal(ours.loss, orpos.loss)
    for name in ("nll", "log_odds"):
        assert torch.equal(ours.diagnostics[name], orpos.diagnostics[name])
    torch.testing.assert_close(weight * ours.chosen_reward, orpos.chosen_reward)
    torch.testing.assert_close(weight * ours.rejected_reward, orpos.rejected_reward)
    assert_detached(ours)


# ---- sampling


@settings(max_examples=60, deadline=None)
@given(response=RESPONSES, k=K, more=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_the_negative_token_is_never_sampled(response: Response, k: int, more: int, seed: int) -> None:
    """Nor are the tokens ``more`` that it is given and did not ask for."""
    torch.manual_seed(seed)
    contrast = contrasted(Policy([response]).top(k + 1 + more), k)
    for position, token, rank in zip(response, contrast.token.tolist(), contrast.rank.tolist(), strict=True):
        assert token in plain.candidates(position, k)
        assert sorted(position.logits, reverse=True)[rank - 1] == position.logits[token]


@settings(max_examples=30, deadline=None)
@given(response=RESPONSES, seeds=st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)))
def test_one_alternative_needs_no_chance(response: Response, seeds: tuple[int, int]) -> None:
    tokens = [sampled(Policy([response]), 1, seed) for seed in seeds]
    assert tokens[0] == tokens[1] == [[plain.candidates(position, 1)[0] for position in response]]


def test_alternatives_are_sampled_from_the_softmax_of_the_k_highest() -> None:
    """20,000 draws: the standard error of a share is below 0.0036. Catches a softmax over all, uniform draws, and noise
    of the wrong sign, which only shows with more than two alternatives."""
    response = [Position([2.0, 1.0, 0.0, 1.5, 0.75], 1)] * 20_000
    token = torch.tensor(sampled(Policy([response]), 3, 0)[0])
    share = torch.bincount(token, minlength=5) / len(token)
    high = torch.tensor([2.0, 1.5, 0.75]).softmax(0)
    torch.testing.assert_close(share, torch.tensor([high[0], 0.0, 0.0, high[1], high[2]]), atol=0.015, rtol=0)


def test_the_seed_decides() -> None:
    response = [Position([1.0, 1.1, 0.9, 1.2, 0.8], 0)] * 50
    assert sampled(Policy([response]), 4, 3) == sampled(Policy([response]), 4, 3)
    assert sampled(Policy([response]), 4, 3) != sampled(Policy([response]), 4, 4)


# ---- gradients


def gradient(output: Tensor, policy: Policy) -> Tensor:
    return torch.autograd.grad(output, policy.logits, allow_unused=True, materialize_grads=True)[0]


def test_cringe_lowers_the_negative_token_and_raises_its_alternative() -> None:
    policy = Policy([BAD])
    top = policy.top(2)
    plainly = gradient(contrasted(top, 1).loss.sum(), policy)
    pull = torch.tensor([1.0, -2.0], dtype=torch.float64).sigmoid()  # of S(1) and S(-2)
    expected = torch.tensor([[pull[0], -pull[0], 0.0], [-pull[1], 0.0, pull[1]]], dtype=torch.float64)
    torch.testing.assert_close(plainly, expected)
    policy = Policy([BAD])
    detached = gradient(contrasted(policy.top(2), 1, detach_alternative=True).loss.sum(), policy)
    torch.testing.assert_close(detached, expected.clamp(min=0))


@pytest.mark.parametrize("detach", [True, False])
def test_losses_pass_the_detach_option_on(detach: bool) -> None:
    policy, label = Policy([BAD]), torch.zeros(1, dtype=torch.float64)
    loss = cringe(policy.log_probs, label, policy.top(2), k=1, detach_alternative=detach).loss
    assert bool((gradient(loss.sum(), policy) < 0).any()) is not detach
    chosen, rejected = Policy([GOOD]), Policy([BAD])
    pair = Pair(chosen.log_probs, rejected.log_probs)
    loss = pairwise_cringe(pair, rejected.top(2), k=1, detach_alternative=detach).loss
    assert bool((gradient(loss.sum(), rejected) < 0).any()) is not detach


def test_the_gate_is_a_constant_unless_asked_otherwise() -> None:
    """Detached, the chosen response has the gradient of its likelihood times the gate. With gradients through the gate
    M is pushed up further, since the bracket is positive."""
    slopes = {}
    for detach in (True, False):
        chosen, rejected = Policy([GOOD]), Policy([BAD])
        token, other = (p.log_probs.token.detach().requires_grad_() for p in (chosen, rejected))
        pair = Pair(chosen.log_probs.with_token(token), rejected.log_probs.with_token(other))
        output = pairwise_cringe(pair, rejected.top(2), alpha=0.5, k=1, tau=2.0, detach_gate=detach)
        output.loss.sum().backward()
        slopes[detach] = (token.grad, other.grad)
        opened, bracket = output.diagnostics["gate"].item(), 0.930024
    assert slopes[True][0].tolist() == pytest.approx([-opened / 4] * 2)
    assert slopes[True][1] is None  # log-probs of the rejected response enter M only
    through = bracket * opened * (1 - opened) / 2.0
    assert slopes[False][0].tolist() == pytest.approx([-opened / 4 - through] * 2, rel=1e-5)
    assert slopes[False][1].tolist() == pytest.approx([through] * 2, rel=1e-5)


@pytest.mark.parametrize("name", JUDGMENT)
def test_detection_and_weights_are_constants(name: str) -> None:
    """Context A learns its likelihood only; context B likelihood, and at detected tokens d log(1 - p) = -p/(1 - p)."""
    policy = judged([JUDGED])
    options = {"gamma": 1.0} if name == "cut_paper" else {}
    JUDGMENT[name](policy, unlikelihood_weight=0.5, **options).loss.sum().backward()
    share = 0.5 / 3 if name == "cut" else 1 / 3
    assert policy.judged.token.grad.tolist() == pytest.approx([-share] * 3)
    odds = [0.223130 / 0.776870, None, 0.049787 / 0.950213]
    weight = 0.5 if name == "cut" else 0.5 * 0.367879
    expected = [-share if odd is None else share * weight * odd for odd in odds]
    assert policy.plain.token.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_certain_tokens_have_finite_unlikelihood() -> None:
    policy = judged([([0.0, -1.0], [0.0, -1.0])])
    for loss in (cut, cut_paper):
        output = loss(policy, threshold=0.5)
        assert output.loss.isfinite().all()
        assert torch.autograd.grad(output.loss.sum(), policy.plain.token)[0].isfinite().all()


# ---- the cut of a step


def test_cringe_does_not_depend_on_the_cut_of_a_step() -> None:
    responses, labels = [GOOD, BAD, BAD[:1]], [1, 0, 0]
    whole = binary(responses, labels).loss
    parts = [binary(responses[:1], labels[:1], 5 / 3).loss, binary(responses[1:], labels[1:], 5 / 3).loss]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_micro_batch_of_one_label() -> None:
    assert binary([GOOD], [1]).diagnostics["contrast"].shape == (0,)
    assert binary([BAD], [0]).diagnostics["ce"].shape == (0,)
    assert binary([GOOD], [1]).loss.tolist() == pytest.approx([1.5])


@pytest.mark.parametrize("name", JUDGMENT)
def test_cut_does_not_depend_on_the_cut_of_a_step(name: str) -> None:
    rows = [JUDGED, PLAIN]
    whole = JUDGMENT[name](judged(rows)).loss
    parts = [JUDGMENT[name](judged([row], lengths=(1.5, 2.0))).loss for row in rows]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_detected_tokens() -> None:
    policy = judged([PLAIN, JUDGED])
    assert detected(policy, 1.1).tolist() == [False, True, False, True]
    assert detected(policy, 0.1).tolist() == [False, True, True, True]  # a row without criticism has none


@pytest.mark.parametrize("loss", [cringe, pairwise_cringe])
@pytest.mark.parametrize("k", [0, 1.5, True])
def test_k_is_a_whole_number(loss: Any, k: Any) -> None:
    policy = Policy([BAD])
    given: Any = Pair(policy.log_probs, policy.log_probs) if loss is pairwise_cringe else policy.log_probs
    label = [] if loss is pairwise_cringe else [torch.zeros(1)]
    with pytest.raises(ValueError, match=r"k=.* must be a whole number in \[1, inf\)"):
        loss(given, *label, policy.top(2), k=k)
