"""Damaged files: the damaged rows are problems; rows before them and, where the format allows, after them are kept."""

from __future__ import annotations

import datetime
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet
import pytest

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.sources.mixture import Mixture
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers import tokenizers

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def made(path, kind="preference", source=None, **options):
    spec = DataSpec(cache=False, on_bad_row="exclude", **options)
    return tokenize(source or Files(str(path)), tokenizers.qwen_like(), spec, kind)


def pairs(count):
    return [{"prompt": f"a{i}", "chosen": f"b{i}", "rejected": f"c{i}"} for i in range(count)]


def jsonl(file, *rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def kept(result):
    return [int(example.row.rpartition(":")[2]) for example in result.examples]


def test_json_that_python_cannot_hold_is_a_problem_of_its_row(tmp_path):
    deep = json.dumps(PAIR)[:-1] + ', "meta": ' + "[" * 100_000 + "]" * 100_000 + "}"
    twice = '{"prompt": "a", "chosen": "b", "chosen": "x", "rejected": "c"}'
    nested = '{"prompt": [{"role": "user", "content": "a", "content": "x"}], "chosen": "b", "rejected": "c"}'
    result = made(jsonl(tmp_path / "a.jsonl", PAIR, deep, twice, nested, {**PAIR, "prompt": "d"}))
    assert kept(result) == [1, 5]
    assert [problem.message[:45] for problem in result.report.problems] == [
        "JSON that cannot be represented: RecursionErr",
        "JSON that cannot be represented: _RepeatedKey",
        "JSON that cannot be represented: _RepeatedKey",
    ]
    (tmp_path / "b.json").write_text(f"[{json.dumps(PAIR)}, {deep}]")
    (problem,) = Files(str(tmp_path / "b.json")).rows()
    assert "none of it was read" in problem.error


def test_numbers_of_any_size_are_errors_only_where_they_are_used(tmp_path):
    huge = "9" * 5000
    row = json.dumps(PAIR)[:-1]
    lines = [f'{row}, "id": {huge}}}', f'{row}, "margin": {huge}}}', f'{row}, "margin": 1e400}}']
    result = made(jsonl(tmp_path / "a.jsonl", *lines))
    assert kept(result) == [1]
    assert all("'margin' must be a finite number" in problem.message for problem in result.report.problems)
    prompts = made(jsonl(tmp_path / "b.jsonl", f'{{"prompt": "a", "id": {huge}}}'), kind="prompt")
    assert "'id' holds a value that JSON cannot" in "".join(prompts.report.notes)


def test_a_cut_archive_gives_the_rows_before_the_cut(tmp_path):
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in pairs(3000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode()))
    result = made(tmp_path)
    (problem,) = result.report.problems
    assert 100 < result.report.kept < 3000
    assert problem.row == f"{tmp_path}/a.jsonl.gz:{result.report.kept}"  # the row behind; the other file has one more
    assert "the file cannot be read from here on, so later rows are lost: EOFError" in problem.message
    garbled = bytearray(content)
    garbled[len(content) // 2] ^= 0xFF
    (tmp_path / "c.csv.gz").write_bytes(b"no archive")
    (tmp_path / "a.jsonl.gz").write_bytes(garbled)
    assert {problem.row.rpartition("/")[2].partition(":")[0] for problem in made(tmp_path).report.problems} == {
        "a.jsonl.gz",
        "c.csv.gz",
    }


def spoil(file, word):
    """Change bytes of an uncompressed page behind a word."""
    content = bytearray(file.read_bytes())
    at = content.index(word.encode())
    content[at - 4 : at] = b"\xff\xff\xff\x7f"  # the length of that text
    file.write_bytes(content)


def test_a_damaged_page_loses_the_rows_after_it_in_its_row_group(tmp_path):
    file = tmp_path / "a.parquet"
    rows = [{**row, "other": f"o{i}"} for i, row in enumerate(pairs(9))]
    options = {"row_group_size": 3, "compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file, **options)
    whole = made(file)
    spoil(file, "o4")  # nobody uses that column
    assert list(made(file).examples) == list(whole.examples)
    assert kept(made(file, kind="prompt")) == [1, 2, 3, 7, 8, 9]  # rewards see all columns
    spoil(file, "c4")
    result = made(file)
    assert kept(result) == [1, 2, 3, 7, 8, 9]
    assert [problem.row for problem in result.report.problems] == [f"{file}:{number}" for number in (4, 5, 6)]
    assert "the file cannot be read from row 4 to row 6" in result.report.problems[0].message
    with pytest.raises(DataError, match=r"3 of 9 rows .* \(33%: 3 broken row\)(.|\n)*\(3 rows\)"):
        result.report.enforce(DataSpec(on_bad_row="exclude"))


def test_dates_that_python_cannot_represent(tmp_path):
    when = pa.array([0, 10**15, 0], pa.timestamp("ms"))  # the year 33,658
    table = pa.table({"prompt": ["a", "b", "c"], "chosen": ["d"] * 3, "rejected": ["e"] * 3, "when": when})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert kept(made(tmp_path / "a.parquet")) == [1, 2, 3]
    prompts = made(tmp_path / "a.parquet", kind="prompt")
    assert (kept(prompts), prompts.report.notes[-1:]) == (
        [1, 2, 3],
        ["the column 'when' holds a value that JSON cannot represent, so rewards do not see it"],
    )
    used = made(tmp_path / "a.parquet", columns={"chosen": "when"})
    assert all("'when' must be text or a list of messages" in problem.message for problem in used.report.problems)
    assert isinstance(next(Files(str(tmp_path / "a.parquet")).rows()).values["when"], datetime.datetime)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, kind):
    names, cells = ["prompt", "chosen", "rejected", "chosen"], ["a", "b", "c", "d"]
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.table([[cell] for cell in cells], names=names), file)
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        file.write_text(f"{separator.join(names)}\n{separator.join(cells)}\n")
    with pytest.raises(DataError, match=rf"a\.{kind}: more than one column is named 'chosen'"):
        made(file)
    (tmp_path / "unnamed.csv").write_text("prompt,chosen,rejected,,\na,b,c,,\n")  # as spreadsheets write them
    assert kept(made(tmp_path / "unnamed.csv")) == [1]


def test_a_byte_that_is_not_text_is_an_error_of_its_cell_only(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected,other\na,b,c,\xff\nd,\xff,f,g\n")
    result = made(tmp_path / "a.csv")
    assert kept(result) == [1]
    assert result.report.problems[0].message == "'chosen': not valid UTF-8"
    seen = made(tmp_path / "a.csv", kind="prompt").report.problems  # by rewards
    assert {problem.message for problem in seen} == {"'other': not valid UTF-8", "'chosen': not valid UTF-8"}


def test_file_names_that_are_not_text(tmp_path):
    file = os.fsencode(tmp_path) + b"/\xff.jsonl"
    with open(file, "w") as handle:
        handle.write(json.dumps(PAIR) + "\n{}\n")
    result = made(tmp_path)
    assert result.examples.rows() == [f"{tmp_path}/\\udcff.jsonl:1"]
    assert str(result.report.problems[0]).encode()
    assert len(Files(str(tmp_path)).fingerprint()) == 64


# Mixtures


def parts(tmp_path):
    nested = [{"meta": {"q": f"a{i}"}, "best": {"text": f"b{i}"}, "worst": {"text": f"c{i}"}} for i in range(3)]
    flat = [{"question": f"d{i}", "good": f"e{i}", "bad": f"f{i}"} for i in range(3)]
    return {
        "nested": Files(str(jsonl(tmp_path / "nested.jsonl", *nested))),
        "flat": Files(str(jsonl(tmp_path / "flat.jsonl", *flat))),
    }


COLUMNS = {
    "nested": {"prompt": "meta.q", "chosen": "best.text", "rejected": "worst.text"},
    "flat": {"prompt": "question", "chosen": "good", "rejected": "bad"},
}


def test_columns_of_mixtures_follow_dots(tmp_path):
    mixture = Mixture(parts(tmp_path), columns=COLUMNS, stop="longest")
    result = made(None, source=mixture)
    result.report.enforce(DataSpec())
    prompts = {bytes(example.prompt).decode() for example in result.examples}
    assert prompts == {f"{letter}{i}" for letter in "ad" for i in range(3)}


def test_a_misspelt_column_of_a_mixture_is_named(tmp_path):
    wrong = {**COLUMNS, "nested": {**COLUMNS["nested"], "chosen": "best.txt"}}
    with pytest.raises(DataError, match=r"data\.source\.columns\.nested\.chosen=best\.txt: no such column"):
        made(None, source=Mixture(parts(tmp_path), columns=wrong, stop="longest"))


def test_a_source_of_a_mixture_without_usable_rows_stops(tmp_path):
    bad = Files(str(jsonl(tmp_path / "bad.jsonl", *({**PAIR, "prompt": ""} for _ in range(3)))))
    good = Files(str(jsonl(tmp_path / "good.jsonl", *pairs(300))))
    mixture = Mixture({"bad": bad, "good": good}, {"bad": 1, "good": 20}, limit=200)
    spec = DataSpec(on_bad_row="exclude")
    result = made(None, source=mixture)
    with pytest.raises(DataError, match=r"none of the \d+ rows of bad can be used, the first one because: the prompt"):
        result.report.enforce(spec)
    empty = Files(str(jsonl(tmp_path / "empty.jsonl")))
    for stop in ("shortest", "longest"):
        with pytest.raises(DataError, match=r"empty\.jsonl holds no rows; remove empty from"):
            made(None, source=Mixture({"empty": empty, "good": good}, stop=stop))
