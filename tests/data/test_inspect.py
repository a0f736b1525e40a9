from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from rlhf_lightning.cli import data as data_command
from rlhf_lightning.data.inspect import inspect
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers import tokenizers
from tests.helpers.rows import Rows, shared_file

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def printed(source, tokenizer, kind, *, colour=False, rows=3, encoding="utf-8", **options):
    made = tokenize(source, tokenizer, DataSpec(cache=False, **options), kind)
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = Console(
        file=file, width=100, force_terminal=colour, color_system="standard" if colour else None, legacy_windows=False
    )
    inspect(made.examples, made.report, tokenizer, console, rows=rows)
    file.seek(0)
    return file.read()


def turns(*contents):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


PAIRS = [{"prompt": "a" * (i + 1), "chosen": "b" * (2 * i + 1), "rejected": "c", "margin": float(i)} for i in range(9)]


def test_counts_lengths_and_shares():
    text = printed(Rows(*PAIRS, {"prompt": "", "chosen": "b", "rejected": "c"}), tokenizers.llama_like(), "preference")
    assert "rows kept  9 of 10, 1 left out" in text
    assert "read as    preference (9), for preference training" in text
    # prompts: BOS + 1 .. 9; chosen: 1, 3 .. 17 and EOS; rejected: 1 and EOS
    assert re.search(r"prompt +2 +6 +6 +10 +10", text)
    assert re.search(r"chosen +2 +10 +10 +17 +18", text)
    assert re.search(r"rejected +2 +2 +2 +2 +2", text)
    assert "162 , of".replace(" ,", ",") in text  # 54 + 90 + 18 tokens
    assert "108 scored (66.7%)" in text
    assert "chosen is longer than rejected in 89% of pairs" in text
    assert "margin 0 .. 4 .. 8 (min, median, max)" in text


def test_histogram_counts_every_example():
    text = printed(Rows(*PAIRS), tokenizers.llama_like(), "preference", rows=0)
    body = text.split("lengths")[1]
    assert sum(map(int, re.findall(r"█ (\d+)", body))) >= 9
    lines = [line for line in body.splitlines() if re.match(r" *\d+ - \d+", line)]
    assert lines[0].lstrip().startswith("0 - ")
    assert lines[-1].lstrip().split()[2] == "18"


def test_scored_tokens_are_marked_without_colours():
    text = printed(Rows(turns("a", "b", "c", "d")), tokenizers.qwen_like(), "supervised")
    assert "[[b<|im_end|>]]" in text
    assert "[[d<|im_end|>]]" in text
    assert text.count("[[") == text.count("]]") == 2
    assert "assistant↵" in text  # the line break before a response is shown
    assert "4 scored" in text


def test_scored_tokens_are_coloured():
    text = printed(Rows(turns("a", "bbb")), tokenizers.qwen_like(), "supervised", colour=True)
    assert "\x1b[32mbbb\x1b[0m" in text
    assert "[[" not in ANSI.sub("", text)


def test_rows_are_spread_over_the_data():
    text = printed(Rows(*PAIRS), tokenizers.llama_like(), "preference", rows=3)
    assert re.findall(r"rows:(\d)", text) == ["1", "5", "9"]
    assert "rows:" not in printed(Rows(*PAIRS), tokenizers.llama_like(), "preference", rows=0)
    assert len(re.findall(r"rows:\d", printed(Rows(PAIRS[0]), tokenizers.llama_like(), "preference", rows=3))) == 1


def test_long_rows_show_both_ends_and_ids():
    row = {"prompt": "p", "response": "b" * 200 + "z" * 100}
    text = printed(Rows(row), tokenizers.llama_like(), "supervised")
    assert "... 141 tokens ..." in text
    assert "ids 98 98 98 98 98 98 ... 122 122 122 122 122 257" in text


def test_every_problem_is_listed_with_its_row():
    rows = [{"text": "a"}, {"text": 3}, {"text": ""}, {"text": "a"}]
    text = printed(Rows(*rows), tokenizers.llama_like(), "supervised")
    assert re.search(r"1 +wrong type +no +convert the field", text)
    assert re.search(r"1 +duplicate +yes", text)
    assert "rows:2  wrong type  'text' must be text, not int '3'" in text
    assert "rows:3  empty response  response is empty" in text
    assert "rows:4  duplicate  the same tokens as rows:1" in text


def test_good_data_says_so_and_bad_data_alone_is_no_crash():
    assert "no problems found" in printed(Rows({"text": "a"}), tokenizers.llama_like(), "supervised")
    text = printed(Rows({"text": 1}), tokenizers.llama_like(), "supervised", format="text")
    assert "rows kept  0 of 1, 1 left out" in text
    assert "rows:1  wrong type" in text


def test_text_that_looks_like_markup_is_printed_as_it_is():
    text = printed(Rows({"prompt": "[bold]a[/]", "response": "[/x]"}), tokenizers.llama_like(), "supervised")
    assert "[bold]a[/]" in text
    assert "[[[/x]</s>]]" in text
    source = Rows({"text": "a"})
    source.name = "owner/name[train]"
    assert "owner/name[train]" in printed(source, tokenizers.llama_like(), "supervised")


def test_long_lines_are_folded_never_cut():
    made = tokenize(Rows({"text": "Z" * 150}), tokenizers.llama_like(), DataSpec(cache=False), "supervised")
    console = Console(file=io.StringIO(), width=60, soft_wrap=True)
    inspect(made.examples, made.report, tokenizers.llama_like(), console)
    shown = console.file.getvalue()
    assert shown.count("Z") == 150
    assert max(map(len, shown.splitlines())) <= 60


def test_terminals_without_unicode():
    text = printed(Rows(*PAIRS), tokenizers.llama_like(), "preference", encoding="ascii")
    assert "#" in text
    assert "█" not in text


def test_real_pairs():
    text = printed(Files(shared_file("hh_dialogues_300.jsonl")), tokenizers.default_system(), "preference")
    assert "implicit_prompt (299)" in text
    assert "hh_dialogues_300.jsonl:87" in text


# What each kind shows beside lengths and text.
SHOWN = {
    "ranked": (
        [
            {"prompt": "a", "responses": ["b", "cc", "d"], "scores": [1, 3, 2]},
            {"prompt": "a", "responses": ["b"], "scores": [0]},
        ],
        [
            "responses a list: lists  1: 1, 3: 1",
            "score 0 .. 1.5 .. 3 (min, median, max)",
            "response 1  score 3  3 tokens",
        ],
    ),
    "unpaired": (
        [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "response": "e", "label": True}],
        ["rows kept  2 of 2, as 3 labelled responses", "2 desirable, 1 not", "response  desirable 0  2 tokens"],
    ),
    "safety": (
        [{"prompt": "a", "chosen": "bb", "rejected": "c", "chosen_safe": True, "rejected_safe": False}],
        ["safer is longer than less safe in 100% of pairs", "less safe: 0% safe", "safer  safe 1  3 tokens"],
    ),
    "judged": (
        [{"prompt": "a", "response": "b", "judgment": "bad"}, {"prompt": "a", "response": "c"}],
        ["response after the judgment: in 50% of the groups", "### Judgment:", "prompt: response after the judgment"],
    ),
    "steps": (
        [{"prompt": "a", "steps": ["b", "c"], "labels": [1, 0]}],
        ["2.0 steps a solution (most 2), 50% of them right", "solution  labels 1 0  4 tokens, 2 scored"],
    ),
    "attributes": (
        [{"prompt": "a", "response": "b", "attributes": {"x": 1}}, {"prompt": "a", "response": "c", "x": 2}],
        ["x 1 .. 1 .. 1 (min, median, max)", "response  x 1  2 tokens"],
    ),
    "paraphrase": (
        [{"instruction": "a", "paraphrase": "b", "output": "c"}],
        ["negative response: in 0% of the groups", "response to the paraphrase  2 tokens"],
    ),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_what_is_known_beside_the_tokens_is_shown(kind):
    rows, expected = SHOWN[kind]
    text = printed(Rows(*rows), tokenizers.llama_like(), kind, on_bad_row="exclude")
    assert [line for line in expected if line not in text] == []


@pytest.mark.parametrize(
    ("method", "row", "noun"),
    [
        ("attribute_regression", {"prompt": "a", "response": "b", "attributes": {"x": 1.0, "y": 2.0}}, "attributes"),
        ("process_reward", {"prompt": "a", "steps": ["b", "c"], "labels": [True, False]}, "steps"),
        ("binary_discrimination", {"prompt": "a", "response": "b", "label": True}, "unpaired"),
    ],
)
def test_the_command_asks_the_method_with_its_options_what_it_learns_from(tmp_path, capsys, method, row, noun):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    where = [f"data.source.path={tmp_path}/a.jsonl", "data.spec.cache=false"]
    assert data_command.main(["inspect", f"method={method}", "model=tiny_random", "data=json", *where]) == 0
    shown = capsys.readouterr().out
    assert f"for {noun} training" in shown
    assert "1 of 1" in shown
