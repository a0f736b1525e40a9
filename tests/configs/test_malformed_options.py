"""Seeded malformed options: each is refused in words that name it, or is what was typed; no bug, nothing silent."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import describe, is_message

COUNT, QUICK = 300, 12
KINDS = ("name", "place", "number", "soup", "word", "group", "follow")
GROUPS = ("method", "model", "optimizer", "trainer")
#: Mappings whose names are the user's own, or the data's.
OPEN = ("data.spec.columns", "callbacks", "logger")
PIECES = [
    "~",
    "/",
    "#",
    "'",
    '"',
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    "=",
    "é",
    "日",
    "!",
    "%",
    ":",
    " ",
    "a",
    "b1",
    ".",
    "@",
]
WORDS = ["maybe", "abc", "1.5x", "[]", "[1,2]", "{a: 1}", "nan", "inf", "-inf", "1e999", "''", "none", "0x10"]


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in node.items():
        full = f"{key}.{name}" if key else str(name)
        if isinstance(inner, dict):
            yield from leaves(inner, full)
        else:
            yield full, inner


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    tree = OmegaConf.to_container(compose("train", ["model=tiny_random", "data=json", "data.source.path=x.jsonl"]))
    assert isinstance(tree, dict)
    return {key: value for key, value in leaves(tree) if key.rpartition(".")[2][0] != "_" and not key.startswith(OPEN)}


def malformed(options: dict[str, Any], draw: random.Random) -> tuple[str, str, bool]:
    """A key, a value, and whether it has to be refused."""
    numbers = [key for key, value in options.items() if isinstance(value, (int, float))]
    key, kind = (
        draw.choice(sorted(options)),
        draw.choice(["name", "place", "number", "soup", "word", "group", "follow"]),
    )
    name = key.rpartition(".")[2]
    if kind == "name":  # a letter twice
        at = draw.randrange(len(name))
        return f"{key[: len(key) - len(name)]}{name[: at + 1]}{name[at]}{name[at + 1 :]}", "1", True
    if kind == "place":
        return f"paths.{name}", "1", f"paths.{name}" not in options
    if kind == "number":
        return draw.choice(sorted(numbers)), draw.choice(["abc", "nan", "[1]", "{a: 1}", "''", "é"]), True
    if kind == "word":
        return key, draw.choice(WORDS), False
    if kind == "group":
        return (
            draw.choice(["method", "model", "optimizer", "trainer"]),
            draw.choice(["dpoo", "é", "''", "../x", "3"]),
            True,
        )
    if kind == "follow":
        return key, draw.choice(["${nope}", "${oc.env:NO_SUCH_VARIABLE}", "${", "${oc.nope:1}", "???"]), True
    return "paths.runs", "".join(draw.choices(PIECES, k=draw.randint(1, 8))), False


def typed(key: str, value: str) -> Any:
    """Meaning of a value: what Hydra reads, else the text itself, with the home folder in front where it is named."""
    try:
        read = OverridesParser.create().parse_overrides([f"{key}={value}"])[0].value()
    except (HydraException, OmegaConfBaseException):
        read = None
    if read is not None and not value.startswith("~"):
        return read
    text = value.strip()
    return str(Path(text).expanduser()) if text == "~" or text.startswith("~/") else text


def problem(key: str, value: str, refused: bool) -> str | None:
    """Problem with how an option is handled; None: there is none."""
    shown = f"{key}={value}"
    try:
        cfg = compose("train", ["model=tiny_random", "data=json", "data.source.path=x.jsonl", shown])
    except Exception as error:
        text = describe(error)
        if not is_message(error) or "Traceback" in text:
            return f"{shown}: a bug: {text}"
        return None if key.partition(".")[0] in text or value in text else f"{shown}: not named: {text}"
    if refused:
        return f"{shown}: accepted"
    got, expected = OmegaConf.select(cfg, key), typed(key, value)
    got = OmegaConf.to_container(got) if OmegaConf.is_config(got) else got
    same = got == expected or (isinstance(expected, float) and math.isnan(expected))
    return None if same else f"{shown}: became {got!r}, not {expected!r}"


def problems(options: dict[str, Any], seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    drawn = (malformed(options, draw) for _ in itertools.count())
    return [text for one in itertools.islice(drawn, count) if (text := problem(*one)) is not None]


def test_a_few_malformed_options(options: dict[str, Any]) -> None:
    assert problems(options, 0, QUICK) == []


@pytest.mark.slow
def test_malformed_options(options: dict[str, Any]) -> None:
    assert problems(options, 1, COUNT) == []
