"""Malformed rows and files, drawn from a seed: nothing raises, neighbours keep their tokens, every loss is counted."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import Tokenized, tokenize
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

#: Rows drawn in the slow test; a part of them by default.
DRAWN, QUICK = 300, 30
#: What a row says; each text has a word of its own.
WORD = re.compile(r"w\d+q")
#: Notes that account for what a template leaves out by its own rules, or for fields that are no text of the model.
ACCOUNTED = re.compile(r"not scored|reasoning of \d+|fields that the template does not show")
STYLES = {
    "qwen": tokenizers.qwen_like,
    "llama": tokenizers.llama_like,
    "thinking": tokenizers.thinking,
    "plain": tokenizers.gpt2_like,
    "default_system": tokenizers.default_system,
}


class Words:
    """Words that come once."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> str:
        self.count += 1
        return f"w{self.count}q"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def human(text: str) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


#: ProblemKind of data, and a good row of it.
GOOD: dict[str, tuple[str, Callable[[Words], dict[str, Any]]]] = {
    "pairs of text": ("preference", lambda w: {"prompt": w(), "chosen": w(), "rejected": w(), "margin": 1.0}),
    "pairs of messages": (
        "preference",
        lambda w: {"prompt": [user(w())], "chosen": [assistant(w())], "rejected": [assistant(w())]},
    ),
    "pairs of long messages": (
        "preference",
        lambda w: {
            "prompt": [{"role": "system", "content": w()}, user(w()), assistant(w()), user(w())],
            "chosen": [assistant(w()), user(w()), assistant(w())],
            "rejected": [assistant(w())],
        },
    ),
    "whole dialogues": (
        "preference",
        lambda w: {
            "chosen": f"\n\nHuman: {(asked := w())}\n\nAssistant: {w()}",
            "rejected": f"\n\nHuman: {asked}\n\nAssistant: {w()}",
        },
    ),
    "sharegpt pairs": (
        "preference",
        lambda w: {"conversations": [human(w())], "chosen": gpt(w()), "rejected": gpt(w())},
    ),
    "messages": ("supervised", lambda w: {"messages": [user(w()), assistant(w()), user(w()), assistant(w())]}),
    "sharegpt": ("supervised", lambda w: {"conversations": [human(w()), gpt(w())], "system": w()}),
    "alpaca": (
        "supervised",
        lambda w: {"instruction": w(), "input": w(), "output": w(), "history": [[w(), w()]]},
    ),
    "prompt and response": ("supervised", lambda w: {"prompt": w(), "response": w()}),
    "text": ("supervised", lambda w: {"text": f"{w()} {w()}"}),
    "labelled": ("unpaired", lambda w: {"prompt": w(), "response": w(), "label": bool(w.count % 2)}),
    "ranked": ("ranked", lambda w: {"prompt": w(), "responses": [w(), w(), w()], "scores": [3.0, 1.0, 2.0]}),
    "rated objects": (
        "ranked",
        lambda w: {"prompt": w(), "responses": [{"response": w(), "score": 1.0}, {"response": w(), "score": 2.0}]},
    ),
    "steps": ("steps", lambda w: {"prompt": w(), "steps": [w(), w()], "labels": [True, False]}),
    "safety": (
        "safety",
        lambda w: {
            "prompt": w(),
            "response_0": w(),
            "response_1": w(),
            "safer_response_id": 1,
            "is_response_0_safe": False,
            "is_response_1_safe": True,
        },
    ),
    "paraphrase": ("paraphrase", lambda w: {"instruction": w(), "paraphrase": w(), "output": w()}),
    "attributes": ("attributes", lambda w: {"prompt": w(), "response": w(), "attributes": {"a": 1.0, "b": 2.0}}),
    "judged": ("judged", lambda w: {"prompt": w(), "response": w(), "judgment": w()}),
    "comparison": ("comparison", lambda w: {"prompt": w(), "chosen": w(), "rejected": w()}),
    "prompts": ("prompt", lambda w: {"prompt": [user(w())], "answer": w(), "solution": {"final": w()}}),
}
WITH_SYSTEM = ("pairs of long messages", "sharegpt")
#: Values that something else was meant to stand for.
VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: 5,
    lambda: True,
    lambda: "",
    lambda: " \n",
    list,
    dict,
    lambda: [None],
    lambda: [[["x"]]],
    lambda: {"role": "user"},
    lambda: 10**400,
    lambda: Decimal("9" * 5000),
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: -1e300,
    lambda: "1e999",
    lambda: b"\xff\xfe",
    lambda: "half \ud83d pair",
    lambda: "\x00\x1b[31m",
    lambda: datetime.datetime(1, 1, 1),
    lambda: _deep(5000),
    lambda: "<|im_end|>",
    lambda: "<s>",
    lambda: '[{"role": "user", "content": "cut',
    lambda: "[{'role': 'user', 'content': 'python'}]",
)
#: What a turn may carry beside its text; ``w`` gives words.
FIELDS: tuple[Callable[[Words], dict[str, Any]], ...] = (
    lambda w: {"weight": 0},
    lambda w: {"weight": 0.5},
    lambda w: {"weight": "yes"},
    lambda w: {"train": False},
    lambda w: {"masked": True, "train": True},
    lambda w: {"loss": True},
    lambda w: {"train_detail": [{"begin_offset": 0}]},
    lambda w: {"name": w()},
    lambda w: {"reasoning_content": w()},
    lambda w: {"thinking": w()},
    lambda w: {"tool_calls": [{"type": "function", "function": {"name": w(), "arguments": {"a": w()}}}]},
    lambda w: {"tool_calls": json.dumps([{"function": {"name": w(), "arguments": "{}"}}])},
    lambda w: {"tool_calls": "none"},
    lambda w: {"tool_calls": 7},
    lambda w: {"function_call": {"name": w(), "arguments": '{"a": 1}'}},
    lambda w: {"role": "developer"},
    lambda w: {"role": "poet"},
    lambda w: {"role": None},
    lambda w: {"role": ["user"]},
    lambda w: {"content": None},
    lambda w: {"content": [{"type": "text", "text": w()}]},
    lambda w: {"content": [{"type": "image", "url": w()}]},
    lambda w: {"content": f"<think>\n{w()}\n</think>\n\n{w()}"},
    lambda w: {"content": f"<think>{w()}</think>{w()}"},
    lambda w: {"content": {"text": w()}},
)
#: Columns that a row may have beside those of its kind.
COLUMNS: tuple[Callable[[Words], dict[str, Any]], ...] = (
    lambda w: {"tools": [{"type": "function", "function": {"name": w(), "parameters": {}}}]},
    lambda w: {"tools": json.dumps([{"name": w()}])},
    lambda w: {"tools": "hammer"},
    lambda w: {"tools": [1, 2]},
    lambda w: {"system": w()},
    lambda w: {"system": 5},
    lambda w: {"system": "\udc80"},
)


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def spots(value: Any, depth: int = 20) -> Iterator[tuple[Any, Any]]:
    """Every container and key inside a row, down to a depth."""
    listed = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in listed if depth else ():
        yield value, key
        yield from spots(inner, depth - 1)


def spoilt(row: dict[str, Any], draw: random.Random, words: Words) -> str:
    """Change a row in place; return what was done, for messages."""
    turns = [
        inner for holder, key in spots(row) if isinstance(inner := holder[key], dict) and {"role", "from"} & {*inner}
    ]
    lists = [inner for holder, key in spots(row) if isinstance(inner := holder[key], list) and inner]
    choice = draw.choice(["value", "value", "value", "gone", "field", "field", "turns", "text", "column"])
    if choice == "field" and turns:
        turn, added = draw.choice(turns), draw.choice(FIELDS)(words)
        spelt = {"role": "from", "content": "value"} if "from" in turn else {}
        turn.update({spelt.get(name, name): value for name, value in added.items()})
        return f"field {added}"
    if choice == "turns" and lists:
        listed = draw.choice(lists)
        how = draw.choice(["drop", "double", "reverse"])
        if how == "drop":
            listed.pop(draw.randrange(len(listed)))
        elif how == "double":
            listed.insert(draw.randrange(len(listed)), listed[draw.randrange(len(listed))])
        else:
            listed.reverse()
        return f"{how} in {listed}"[:200]
    if choice == "text":
        name = draw.choice([*row])
        row[name] = draw.choice([_as_json, repr, lambda value: _as_json(value)[:-1]])(row[name])
        return f"text of {name}"
    if choice == "column":
        added = draw.choice(COLUMNS)(words)
        row.update(added)
        return f"column {added}"
    holder, key = draw.choice([*spots(row)])
    if choice == "gone" and isinstance(holder, dict):
        del holder[key]
        return f"no {key}"
    position = draw.randrange(len(VALUES))
    holder[key] = VALUES[position]()
    return f"value {position} at {key}"


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a row."""
    return (holder[key] for holder, key in spots(value) if isinstance(holder[key], str))


def words_of(row: Any) -> set[str]:
    return {word for text in texts_of(row) for word in WORD.findall(text)}


def shown(made: Tokenized, row: str, tokenizer: Any) -> str:
    """All text of the examples of a row, and its columns where they are kept."""
    parts = []
    for group in range(len(made)):
        example = made[group]
        if example.row == row:
            parts += [tokenizer.decode(ids) for ids in (example.prompt, *example.more_prompts, *example.responses)]
            parts.append(example.columns or "")
    return "".join(parts)


def check(seed: int) -> None:
    """One malformed row between good ones."""
    draw, words = random.Random(seed), Words()
    name = draw.choice([*GOOD])
    kind, make = GOOD[name]
    # llama's template refuses system turns, of good rows too
    style = draw.choice([style for style in STYLES if style != "llama" or name not in WITH_SYSTEM])
    rows = [make(words) for _ in range(4)]
    bad = make(words)
    done = [spoilt(bad, draw, words) for _ in range(draw.choice([1, 1, 2]))]
    where = f"seed {seed}: {name}, {style}: {done}"
    tokenizer = STYLES[style]()
    spec = DataSpec(cache=False, max_length=None, on_bad_row="exclude", max_left_out=1)
    alone = tokenize(Rows(*rows), tokenizer, spec, kind)  # type: ignore[arg-type]
    made = tokenize(Rows(*rows, bad), tokenizer, spec, kind)  # type: ignore[arg-type]
    report = made.report
    assert report.rows == report.kept + report.filtered + sum(report.excluded.values()) == 5, where
    made.report.enforce(spec)
    assert all("\n" not in (text := str(problem)) and text.encode() for problem in report.problems), where
    # repr: labels of steps are nan where there is none; a margin that is missing switches all of them off, with a note
    before, after = ([repr(replace(example, margin=None)) for example in part.examples] for part in (alone, made))
    assert after[: len(before)] == before, where
    if not any(problem.row == "rows:5" and not problem.warning for problem in report.problems):
        missing = words_of(bad) - {*WORD.findall(shown(made, "rows:5", tokenizer))}
        assert not missing or any(ACCOUNTED.search(note) for note in report.notes), (
            f"{where}: {missing} lost in silence"
        )


def test_malformed_rows_are_problems_of_their_own_and_nothing_is_lost_in_silence():
    for seed in range(QUICK):
        check(seed)


@pytest.mark.slow
def test_many_malformed_rows():
    for seed in range(QUICK, DRAWN):
        check(seed)


# Files


def _jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _json(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text(json.dumps(rows))


def _gzip(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def _csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def _parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=20, compression="zstd")


WRITERS = {"jsonl": _jsonl, "json": _json, "jsonl.gz": _gzip, "csv": _csv, "parquet": _parquet}


def check_file(seed: int, folder: Path) -> None:
    """A file of good rows with some of its bytes changed, lost or doubled."""
    draw, words = random.Random(seed), Words()
    suffix = draw.choice([*WRITERS])
    rows = [{"prompt": words(), "chosen": words(), "rejected": words(), "other": words()} for _ in range(60)]
    file = folder / f"{seed}.{suffix}"
    WRITERS[suffix](file, rows)
    content = bytearray(file.read_bytes())
    start = draw.randrange(len(content))
    how = draw.choice(["flip", "cut", "noise", "double"])
    if how == "flip":
        content[start] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del content[start:]
    elif how == "noise":
        content[start : start + 20] = draw.randbytes(20)
    else:
        content[start:start] = content[start : start + 50]
    file.write_bytes(content)
    spec = DataSpec(cache=False, max_length=None, on_bad_row="exclude", max_left_out=1)
    try:
        made = tokenize(Files(str(file)), tokenizers.qwen_like(), spec, "preference")
    except DataError:  # a header or a key was hit: no row fits any more
        return
    report = made.report
    assert report.rows == report.kept + sum(report.excluded.values()), f"seed {seed}: {suffix}, {how}"
    if suffix == "parquet" and report.rows > 1:  # it says how many rows there are, so none is lost uncounted
        assert report.rows == len(rows), f"seed {seed}: {how}"


def test_damaged_files_are_problems_of_their_rows(tmp_path):
    for seed in range(QUICK):
        check_file(seed, tmp_path)


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    for seed in range(QUICK, DRAWN):
        check_file(seed, tmp_path)
