"""Values that Hydra's grammar does not know are quoted, what it reads stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf_lightning.cli.overrides import quoted, quoting_hint, readable

HOME = str(Path.home())


def value_of(text: str):
    return OverridesParser.create().parse_overrides(readable([f"data.source.path={text}"]))[0].value()


@pytest.mark.parametrize(
    "text",
    [
        "it's.jsonl",
        "a#1.jsonl",
        "a=b.jsonl",
        "a(1).jsonl",
        "données/été.jsonl",
        "日本",
        "'tis",
        "[x",
        "a&b;c!d<e>^`",
        'a"b',
    ],
)
def test_a_path_is_written_as_it_is(text: str) -> None:
    assert value_of(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~/a.jsonl", f"{HOME}/a.jsonl"),
        ("~", HOME),
        ("[~/a,b#c]", [f"{HOME}/a", "b#c"]),
        ("[[1,2],[é]]", [[1, 2], ["é"]]),
    ],
)
def test_home_and_items_of_lists(text: str, value: object) -> None:
    assert value_of(text) == value


def test_each_value_of_a_sweep_is_quoted() -> None:
    assert readable(["data.source.path=~/a,b,é"]) == [f'data.source.path="{HOME}/a",b,"é"']


@pytest.mark.parametrize(
    "override",
    ["a=[1,2]", "a={b: 1}", "a=choice(1,2)", "a=1,2", "~callbacks.samples", "a=", "a='b c'", "a=a b", "a=1e-3", "a=~b"],
)
def test_what_hydra_reads_stays(override: str) -> None:
    assert readable([override]) == [override if override != "a=~b" else 'a="~b"']


def test_what_cannot_be_read_stays_and_is_hinted_at() -> None:
    assert readable(["a={b: é}", "seed"]) == ["a={b: é}", "seed"]
    assert quoting_hint("a={b: é}").endswith("quote it inside the shell's quotes: 'a=\"{b: é}\"'")


@pytest.mark.parametrize("text", ["a\\", 'a"b', "a\\\\'b", "${", ""])
def test_quoted_text_is_that_text(text: str) -> None:
    assert OverridesParser.create().parse_overrides([f"a={quoted(text)}"])[0].value() == text
