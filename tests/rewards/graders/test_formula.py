"""Arithmetic over scores: right values, and nothing but arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.rewards.graders.formula import Formula

VALUES = {"a": 0.5, "b": 2.0, "zero": 0.0}


@pytest.mark.parametrize(
    ("text", "value", "mistake"),
    [
        ("a", 0.5, "nothing is computed"),
        ("1 - a * b + 3", 3.0, "evaluation from left to right"),
        ("a + b ^ 2", 4.5, "^ as exclusive or, which binds more loosely than +"),
        ("2 * b ^ 3", 16.0, "^ as exclusive or: (2 b) ^ 3 = 64"),
        ("-b ^ 2", -4.0, "sign before power"),
        ("2 ^ b ^ 3", 256.0, "powers from the left: 64"),
        ("2 ** 3", 8.0, "** refused"),
        ("(a + b) / 2", 1.25, "whole division"),
        ("min(a, b, 1)", 0.5, "max"),
        ("max(a, 1) - abs(-3)", -2.0, "no sign"),
        ("floor(1.7) + ceil(1.2)", 3.0, "rounding"),
        ("sqrt(4) + log(exp(2))", 4.0, "logarithm to base 10"),
        ("+a", 0.5, "unary plus refused"),
    ],
)
def test_values(text: str, value: float, mistake: str):
    assert Formula(text, VALUES)(VALUES) == pytest.approx(value, abs=1e-12), mistake


INJECTIONS = [
    "__import__('os').system('true')",
    "a.__class__",
    "a.__class__.__mro__[1].__subclasses__()",
    "(lambda: 1)()",
    "[x for x in (1,)]",
    "a if a else b",
    "a and b",
    "a < b",
    "a | b",
    "a % b",
    "a // b",
    "a @ b",
    "~1",
    "not a",
    "'text'",
    "b'text'",
    "1j",
    "True",
    "None",
    "...",
    "f'{a}'",
    "(a, b)",
    "{a: b}",
    "a[0]",
    "open('x')",
    "eval('1')",
    "min.__call__(a)",
    "min(*a)",
    "max(a, key=b)",
    "min()",
    "abs(a, b)",
    "(a := 1)",
    "a = 1",
    "a; b",
    "import os",
    "c",
    "min",
    "",
    "a +",
    "1" * 400,
    "(" * 600 + "a" + ")" * 600,
    "-" * 1500 + "a",
    "a" * 3000,
    "yield a",
    "await a",
    "\x00",
]


@pytest.mark.parametrize("text", INJECTIONS, ids=range(len(INJECTIONS)))
def test_nothing_but_arithmetic(text: str):
    with pytest.raises(ValueError, match="calculate_output="):
        Formula(text, VALUES)


@pytest.mark.parametrize(
    "text", ["1 / zero", "log(zero)", "sqrt(-b)", "(-b) ^ a", "zero ^ -1", "10.0 ^ 400", "9 ^ 9 ^ 9 ^ 9", "exp(10000)"]
)
def test_no_number(text: str):
    with pytest.raises(ArithmeticError):
        Formula(text, VALUES)(VALUES)


def test_sums_of_many():
    names = [f"g{i}" for i in range(100)]
    assert Formula(" + ".join(names), names)(dict.fromkeys(names, 1.0)) == 100


def test_what_it_mentions():
    assert Formula("a * 2", VALUES).used == {"a"}


@given(st.text(alphabet="ab10.+-*/^() ,minx", max_size=30))
def test_any_text_is_a_number_or_an_error(text: str):
    try:
        value = Formula(text, VALUES)(VALUES)
    except (ValueError, ArithmeticError):
        return
    assert math.isfinite(value)
