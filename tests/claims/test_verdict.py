"""The rule of the board's verdicts, worked by hand."""

from __future__ import annotations

import math

import pytest
import yaml

from rlhf_lightning.claims import verdict
from rlhf_lightning.claims.claim import Arm, Check, Claim
from rlhf_lightning.claims.record import Measurement
from rlhf_lightning.claims.verdict import HELD_OUT_ROWS, NOT_RUN, NOT_SHOWN, SHOWN, UNTESTABLE, Estimate, Outcome, judge
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.world import grammar

A, B = Arm("dpo"), Arm("ipo")
METRIC = "val/gold/length"


@pytest.fixture(autouse=True)
def code(monkeypatch):
    monkeypatch.setattr(verdict, "code_of", lambda arm: "now")


def measured(*values: float | None, code: str = "now", **metrics: tuple[float, ...]) -> Measurement:
    numbers = {METRIC: values, **{name.replace("__", "/"): given for name, given in metrics.items()}}
    return Measurement(tuple(range(1, len(values) + 1)), numbers, code, None, {}, "2024-01-01", 1.0)


def state(first: Measurement, second: Measurement, check: Check) -> str:
    return judge(Claim("p", "s", (check,)), {A.command: first, B.command: second}).state


@pytest.mark.parametrize(
    ("least", "falls", "expected"),
    [
        (0.0, False, SHOWN),  # 3 more, and the standard error is sqrt(1/3 + 1/3) = 0.82
        (1.3, False, SHOWN),
        (1.4, False, NOT_SHOWN),  # 3 - 1.4 < 2 * 0.82
        (0.0, True, NOT_SHOWN),
        (-1.0, True, NOT_SHOWN),
    ],
)
def test_a_difference_must_exceed_two_standard_errors(least, falls, expected):
    check = Check(A, B, METRIC, least, falls)
    assert state(measured(4.0, 5.0, 6.0), measured(1.0, 2.0, 3.0), check) == expected


def test_equal_within_a_tolerance_needs_errors_that_are_small():
    """0.5 less is allowed: 0.1 less shows it when seeds agree, and does not when they vary."""
    check = Check(A, B, METRIC, -0.5)
    assert state(measured(1.0, 1.0, 1.1), measured(1.1, 1.1, 1.2), check) == SHOWN
    assert state(measured(0.0, 1.0, 2.1), measured(1.1, 1.1, 1.2), check) == NOT_SHOWN


def test_the_opposite_is_told_from_no_difference():
    low, high, wide = Estimate(1.0, 0.1), Estimate(2.0, 0.1), Estimate(1.5, 0.5)
    assert Outcome(Check(A, B), low, high).opposite
    assert not Outcome(Check(A, B), wide, high).opposite
    assert not Outcome(Check(A, B), wide, high).holds
    assert not Outcome(Check(A, B, least=3.0), high, low).opposite  # less than is asked for, but not the other way
    assert not Outcome(Check(A, B, least=-2.0), low, high).opposite  # within the tolerance


def test_errors_are_the_larger_of_seeds_and_samples():
    gold, error = "val/gold/reward", "val/gold/standard_error"
    same = measured(0.0, 0.0, **{gold: (1.0, 1.0), error: (0.3, 0.1)})
    assert verdict.estimate(same, gold) == Estimate(1.0, 0.2 / math.sqrt(2))
    apart = measured(0.0, 0.0, **{gold: (1.0, 3.0), error: (0.3, 0.1)})
    assert verdict.estimate(apart, gold).error == pytest.approx(1.0)  # the deviation of 1 and 3 is sqrt(2)
    accuracy = measured(0.0, **{"val/reward/accuracy": (0.8,)})
    assert verdict.estimate(accuracy, "val/reward/accuracy").error == pytest.approx(0.4 / 16)


def test_correlations_of_either_sign_are_compared_by_size():
    check = Check(A, B, METRIC, falls=True, magnitude=True)
    assert state(measured(0.1, -0.1, 0.1), measured(-0.5, -0.6, -0.5), check) == SHOWN
    assert state(measured(0.5, 0.6, 0.5), measured(-0.1, 0.1, -0.1), check) == NOT_SHOWN


def test_one_seed_without_an_error_shows_nothing():
    one, check = Arm("dpo", seeds=(1,)), Check(Arm("dpo", seeds=(1,)), 0.0, METRIC)
    assert judge(Claim("p", "s", (check,)), {one.command: measured(9.0)}).state == NOT_SHOWN


def test_what_is_not_finite_shows_nothing():
    check = Check(A, B, METRIC)
    assert state(measured(9.0, None, 9.0), measured(1.0, 1.1, 1.2), check) == NOT_SHOWN


def test_all_checks_of_a_claim_must_hold():
    arms = {A.command: measured(4.0, 4.1, 4.2), B.command: measured(1.0, 1.1, 1.2)}
    more, less = Check(A, B, METRIC), Check(A, B, METRIC, falls=True)
    assert judge(Claim("p", "s", (more,)), arms).state == SHOWN
    assert judge(Claim("p", "s", (more, less)), arms).state == NOT_SHOWN


def test_what_is_missing_was_not_run():
    check = Check(A, B, METRIC)
    assert judge(Claim("p", "s", (check,)), {A.command: measured(1.0, 1.0, 1.0)}).state == NOT_RUN
    assert judge(Claim("p", "s", (check,)), {}).state == NOT_RUN
    assert judge(Claim("p", "s"), {}).state == NOT_RUN
    both = {A.command: measured(1.0, 1.0, 1.0), B.command: measured(1.0, 1.0)}  # a seed less than is declared
    assert judge(Claim("p", "s", (check,)), both).state == NOT_RUN
    other = Check(A, B, "val/gold/kl")  # a metric that was not kept
    assert judge(Claim("p", "s", (other,)), {**both, B.command: measured(1.0, 1.0, 1.0)}).state == NOT_RUN
    assert judge(Claim("p", "s", untestable="why"), {}).state == UNTESTABLE


def test_a_claim_is_stale_when_code_of_any_arm_has_changed():
    check, new = Check(A, B, METRIC), measured(4.0, 5.0, 6.0)
    old = measured(1.0, 2.0, 3.0, code="then")
    assert not judge(Claim("p", "s", (check,)), {A.command: new, B.command: new}).stale
    assert judge(Claim("p", "s", (check,)), {A.command: new, B.command: old}).stale


def test_the_rows_behind_accuracies_are_those_of_the_data():
    data = yaml.safe_load((conf_dir() / "data" / "tiny.yaml").read_text())
    assert data["validation"]["size"] == HELD_OUT_ROWS


def test_the_samples_behind_shares_are_those_of_the_gold_callback():
    """Responses to advice are never right or wrong."""
    samples = yaml.safe_load((conf_dir() / "callbacks" / "gold.yaml").read_text())["gold"]["samples"]
    prompts = grammar.prompts("validation")
    each = math.ceil(samples / len(prompts))
    correct = each * sum(prompt.topic != "advice" for prompt in prompts)
    assert {"val/gold/correct": correct} == verdict.BOUNDED
