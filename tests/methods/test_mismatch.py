"""Engine mismatch: weights by hand, against plain loops, and what each correction promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.methods import Mismatch
from rlhf_lightning.options import value_object
from rlhf_lightning.types import Ragged
from tests.helpers import reference_mismatch

#: Token ratios 1, 1/4 | 8, 1/2, 1: the first response's product is 1/4 and the second's is 4.
RATIOS = [[1.0, 0.25], [8.0, 0.5, 1.0]]
CORRECTIONS = ["none", "tis", "clamp", "icepop", "seq_mask"]


def ragged(rows: list[list[float]]) -> Ragged:
    sequence = [i for i, row in enumerate(rows) for _ in row]
    return Ragged(torch.tensor([x for row in rows for x in row]), torch.tensor(sequence, dtype=torch.int64), len(rows))


def of_ratios(ratios: list[list[float]]) -> tuple[Ragged, Ragged]:
    """Old and rollout log-probs whose ratios are these; the rollout's are -1."""
    return ragged([[math.log(r) - 1 for r in row] for row in ratios]), ragged([[-1.0 for _ in row] for row in ratios])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        # rollout - old in place of old - rollout would give 4 and 1/8; a lower bound would lift 1/4
        ({"correction": "tis"}, [1, 0.25, 2, 0.5, 1]),
        ({"correction": "tis", "high": 9}, [1, 0.25, 8, 0.5, 1]),
        # masking in place of clamping would give zeros
        ({"correction": "clamp"}, [1, 0.5, 5, 0.5, 1]),
        # clamping in place of masking would give 1/2 and 5; 0/1 masks would give 1 for the kept 1/2
        ({"correction": "icepop"}, [1, 0, 0, 0.5, 1]),
        # the sum over all responses in place of each would be 1 everywhere; token weights would differ in a response
        ({"correction": "seq_mask"}, [0.25, 0.25, 0, 0, 0]),
        ({"correction": "seq_mask", "low": 0.5}, [0, 0, 0, 0, 0]),
        ({"correction": "seq_mask", "outside": "truncate"}, [0.25, 0.25, 3, 3, 3]),
        # 4 ** (1 / 3) and (1 / 4) ** (1 / 2); a division by the longest length would give 0.63
        (
            {"correction": "seq_mask", "ratio": "geometric_mean"},
            [0.5, 0.5, 1.587401, 1.587401, 1.587401],
        ),
        ({"correction": "seq_mask", "ratio": "geometric_mean", "low": 0.6, "high": 1.6}, [0, 0] + [1.587401] * 3),
        ({"bypass": True}, [1, 1, 1, 1, 1]),
    ],
)
def test_golden_weights(options: dict[str, Any], expected: list[float]) -> None:
    weight = Mismatch(**options)(*of_ratios(RATIOS)).weight
    torch.testing.assert_close(weight, torch.tensor(expected).float(), atol=1e-5, rtol=0)


def test_golden_diagnostics() -> None:
    weighted = Mismatch("icepop")(*of_ratios(RATIOS))
    logs = [0.0, math.log(4), math.log(8), math.log(2), 0.0]
    numbers = {
        name: (value.max() if name.endswith("/max") else value.mean()).item()
        for name, value in weighted.diagnostics.items()
    }
    assert numbers["gap/mean"] == pytest.approx(sum(logs) / 5)  # a signed mean would be 0.277 of magnitude
    assert numbers["gap/max"] == pytest.approx(math.log(8))
    # k3 of KL(rollout || old) is w - 1 - log w: 0, .6363, 4.9206, .1931, 0; the other direction would be 2.2
    assert numbers["kl"] == pytest.approx((0.636294 + 4.920558 + 0.193147) / 5, abs=1e-5)
    assert (numbers["weight/min"], numbers["weight/max"]) == pytest.approx((0.0, 1.0))
    assert numbers["weight/mean"] == pytest.approx(2.5 / 5)
    assert numbers["masked"] == pytest.approx(2 / 5)


def test_golden_off_policy_masking() -> None:
    # falls of 0.3 and 0.1 nats a token (means; sums 0.6 and 0.3), threshold 0.2
    behaviour, policy = ragged([[-1.0, -1.0], [-1.0, -1.0, -1.0]]), ragged([[-1.0, -1.6], [-1.1, -1.1, -1.1]])
    mismatch = Mismatch(off_policy_threshold=0.2)
    for advantage, expected in (([-1.0] * 5, [0, 0, 1, 1, 1]), ([1.0] * 5, [1] * 5), ([0.0] * 5, [1] * 5)):
        keep = mismatch.keep(behaviour, None, policy, torch.tensor(advantage))
        assert keep.tolist() == expected  # the policy less the old would keep the first response
    # What drew the tokens counts: with the engine's log-probs the first response has fallen by 0.1 only.
    rollout = ragged([[-1.0, -1.4], [-1.0, -1.0, -1.0]])
    assert mismatch.keep(behaviour, rollout, policy, torch.full((5,), -1.0)).tolist() == [1] * 5
    assert Mismatch().keep(behaviour, rollout, policy, torch.full((5,), -1.0)).tolist() == [1] * 5


def test_bypass_puts_the_engine_below_the_ratio_once() -> None:
    old, rollout = of_ratios(RATIOS)
    bypass, corrected = Mismatch(bypass=True), Mismatch("tis", high=math.inf)
    policy = old.token + 0.1
    once = (policy - bypass.old(old, rollout).token).exp() * bypass(old, rollout).weight
    apart = (policy - corrected.old(old, rollout).token).exp() * corrected(old, rollout).weight
    torch.testing.assert_close(once, apart)  # a weight in both would be the square
    assert bypass(old, rollout).diagnostics["gap/max"].max().item() == pytest.approx(math.log(8))


def test_weights_carry_no_gradient() -> None:
    old, rollout = of_ratios(RATIOS)
    old.token.requires_grad_()
    for correction in CORRECTIONS:
        weighted = Mismatch(correction)(old, rollout)  # type: ignore[arg-type]
        assert not weighted.weight.requires_grad
        assert not any(value.requires_grad for value in weighted.diagnostics.values())


def test_a_token_that_the_engine_did_not_score_is_no_evidence() -> None:
    old, rollout = of_ratios([[2.0, 4.0]])
    rollout.token[1] = math.nan
    weighted = Mismatch("seq_mask")(old, rollout)
    torch.testing.assert_close(weighted.weight, torch.tensor([2.0, 2.0]))  # nan would reach both tokens
    assert weighted.diagnostics["gap/mean"].tolist() == pytest.approx([math.log(2)])
    assert all(not len(value) for value in Mismatch("tis")(ragged([]), ragged([])).diagnostics.values())


def test_without_log_probs_of_the_engine() -> None:
    old, _ = of_ratios(RATIOS)
    assert Mismatch()(old, None).weight.tolist() == [1] * 5
    with pytest.raises(ValueError, match=r"correction=tis.*engine gives none.*vllm"):
        Mismatch("tis")(old, None)
    with pytest.raises(ValueError, match=r"bypass=true"):
        Mismatch(bypass=True).old(old, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"correction": "tsi"}, r"correction='tsi'.*icepop"),
        ({"correction": "tis", "bypass": True}, r"bypass=true with correction=tis.*count twice"),
        ({"correction": "tis", "low": 0.5}, r"low.*clamp"),
        ({"high": 2.0}, r"high bounds nothing"),
        ({"correction": "icepop", "low": 1.5}, r"\[1.5, 5.0\] must contain 1"),
        ({"correction": "clamp", "high": 0.9}, r"must contain 1"),
        ({"correction": "tis", "outside": "truncate"}, r"belong to correction=seq_mask"),
        ({"correction": "seq_mask", "ratio": "mean"}, r"ratio='mean'.*geometric_mean"),
        ({"off_policy_threshold": 0.0}, r"off_policy_threshold=0.0 must be positive"),
    ],
)
def test_refused_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mismatch(**options)


def test_made_of_a_configuration() -> None:
    assert value_object(Mismatch, None, "mismatch") == Mismatch()
    assert value_object(Mismatch, {"correction": "tis", "high": 4}, "mismatch") == Mismatch("tis", high=4)
    assert value_object(Mismatch, Mismatch("clamp"), "mismatch") == Mismatch("clamp")
    with pytest.raises(ValueError, match=r"corection is no option. Did you mean correction\?"):
        value_object(Mismatch, {"corection": "tis"}, "mismatch")
    with pytest.raises(ValueError, match="mismatch='tis' is not allowed, it must be options by name"):
        value_object(Mismatch, "tis", "mismatch")


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[list[float]], list[list[float]]]:
    log_prob = st.floats(-4, -0.0625, width=32)
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    old, rollout = ([[draw(log_prob) for _ in range(length)] for length in lengths] for _ in range(2))
    correction = draw(st.sampled_from(CORRECTIONS))
    options: dict[str, Any] = {"correction": correction}
    if correction in ("clamp", "icepop", "seq_mask"):
        options["low"] = draw(st.floats(0, 0.9375, width=32))
    if correction != "none":
        options["high"] = draw(st.floats(1.0625, 8, width=32))
    if correction == "seq_mask":
        options["ratio"] = draw(st.sampled_from(["product", "geometric_mean"]))
        options["outside"] = draw(st.sampled_from(["mask", "truncate"]))
    return options, old, rollout


@given(cases())
def test_like_plain_loops(case: tuple[dict[str, Any], list[list[float]], list[list[float]]]) -> None:
    options, old, rollout = case
    mismatch = Mismatch(**options)
    ours = mismatch(ragged(old), ragged(rollout)).weight.tolist()
    low, high = mismatch.bounds
    reference = reference_mismatch.weights(
        old, rollout, mismatch.correction, low, high, mismatch.ratio, mismatch.outside
    )
    for weight, expected in zip(ours, (w for row in reference for w in row), strict=True):
        at_a_bound = any(math.isclose(abs(weight - expected), w, rel_tol=1e-4) for w in (low, high))
        assert weight == pytest.approx(expected, rel=1e-4, abs=1e-6) or at_a_bound


@given(cases(), st.floats(-3, 3, width=32), st.floats(0.0625, 2, width=32))
def test_off_policy_like_plain_loops(
    case: tuple[dict[str, Any], list[list[float]], list[list[float]]], advantage: float, threshold: float
) -> None:
    _, old, policy = case
    advantages = [advantage * (-1) ** i for i in range(len(old))]
    token = torch.tensor([a for a, row in zip(advantages, old, strict=True) for _ in row])
    falls = [sum(o - p for o, p in zip(x, y, strict=True)) / len(x) for x, y in zip(old, policy, strict=True)]
    if any(math.isclose(fall, threshold, rel_tol=1e-4) for fall in falls):
        return  # float32 decides
    keep = Mismatch(off_policy_threshold=threshold).keep(ragged(old), None, ragged(policy), token)
    assert keep.tolist() == [k for row in reference_mismatch.kept(old, policy, advantages, threshold) for k in row]


@given(cases())
def test_promises(case: tuple[dict[str, Any], list[list[float]], list[list[float]]]) -> None:
    options, old, rollout = case
    mismatch = Mismatch(**options)
    low, high = mismatch.bounds
    # Where both programs agree every weight is 1 and nothing is masked.
    agree = mismatch(ragged(old), ragged(old))
    assert agree.weight.tolist() == [1.0] * len(agree.weight)
    assert agree.diagnostics["gap/max"].max().item() == 0
    assert agree.diagnostics["masked"].sum().item() == 0
    # Weights lie within the bounds or are 0; a response of one token is the same by token and by sequence.
    weight = mismatch(ragged(old), ragged(rollout)).weight
    assert all(w == 0 or low - 1e-6 <= w <= high + 1e-4 for w in weight.tolist())
    single = [[row[0]] for row in old], [[row[0]] for row in rollout]
    if mismatch.correction == "seq_mask" and mismatch.outside == "mask":
        by_token = Mismatch("icepop", low=low, high=high)
        both = [m(ragged(single[0]), ragged(single[1])).weight for m in (mismatch, by_token)]
        torch.testing.assert_close(*both)


def test_a_long_response_does_not_overflow() -> None:
    old, rollout = ragged([[-1.0] * 400]), ragged([[-2.0] * 400])
    for options in ({"outside": "truncate"}, {"high": math.inf}, {}):
        assert Mismatch("seq_mask", **options)(old, rollout).weight.isfinite().all()  # type: ignore[arg-type]
