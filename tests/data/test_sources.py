from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from itertools import islice

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from rlhf_lightning.data.rows.file_readers import Unreadable
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row, Source
from rlhf_lightning.data.sources.files import Files, Packaged
from rlhf_lightning.data.sources.hub import Hub
from rlhf_lightning.data.sources.mixture import Mixture


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def ids(source):
    return [row.id for row in source.rows()]


def values(source):
    return [dict(row.values) for row in source.rows()]


def test_jsonl_numbers_lines_and_continues_after_a_broken_one(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"x": 1}\n\n{"x": \n[1]\n{"x": "\xff"}\n{"x": 2}')
    rows = list(Files(str(file)).rows())
    assert [(row.number, row.values.get("x"), row.error is None) for row in rows] == [
        (1, 1, True),
        (3, None, False),  # line 2 is blank: not a row, but counted
        (4, None, False),
        (5, None, False),
        (6, 2, True),
    ]
    assert rows[1].error == "not valid JSON at column 6: Expecting value"
    assert rows[2].error == "expected a JSON object, found list"
    assert rows[3].error.startswith("not valid UTF-8")
    assert rows[0].id == f"{file}:1"


def test_json_list_object_with_a_list_and_lines(tmp_path):
    (tmp_path / "list.json").write_text('[{"x": 1}, 5, {"x": 2}]')
    (tmp_path / "field.json").write_text('{"version": 1, "rows": [{"x": 1}], "other": []}')
    (tmp_path / "only.json").write_text('{"rows": [{"x": 1}, {"x": 2}]}')
    (tmp_path / "lines.json").write_text('{"x": 1}\n{"x": 2}\n')
    assert [(r.number, r.error) for r in Files(str(tmp_path / "list.json")).rows()] == [
        (1, None),
        (2, "expected a JSON object, found int"),
        (3, None),
    ]
    assert values(Files(str(tmp_path / "field.json"), field="rows")) == [{"x": 1}]
    assert (
        values(Files(str(tmp_path / "only.json")))
        == values(Files(str(tmp_path / "lines.json")))
        == [{"x": 1}, {"x": 2}]
    )
    with pytest.raises(DataError, match=r"data.source.field='row' is not a list.*rows, other"):
        list(Files(str(tmp_path / "field.json"), field="row").rows())


def test_a_broken_json_file_is_one_reported_row(tmp_path):
    (tmp_path / "a.json").write_text('[{"x": 1},\n {"x": }]')
    (row,) = Files(str(tmp_path / "a.json")).rows()
    assert row.number == 2
    assert "line 2, column 8" in row.error


def test_csv_and_tsv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'x,y\n1,"two\nlines"\n3\n"\xff",4\n5,6\n')
    rows = list(Files(str(tmp_path / "a.csv")).rows())
    assert dict(rows[0].values) == {"x": "1", "y": "two\nlines"}
    assert [(row.number, row.error) for row in rows] == [
        (1, None),
        (2, "1 cells under a header of 2"),
        (3, None),
        (4, None),
    ]
    assert rows[2].values == {"x": Unreadable("not valid UTF-8"), "y": "4"}  # who needs y alone has a good row
    (tmp_path / "a.tsv").write_text("x\ty\n1\t2\n")
    assert values(Files(str(tmp_path / "a.tsv"))) == [{"x": "1", "y": "2"}]
    (tmp_path / "empty.csv").write_text("")
    assert ids(Files(str(tmp_path / "empty.csv"))) == []


def test_parquet_and_gzip(tmp_path):
    table = pa.Table.from_pylist([{"x": 1, "m": [{"role": "user", "content": "a"}]}, {"x": 2, "m": []}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert values(Files(str(tmp_path / "a.parquet")))[0] == {"x": 1, "m": [{"role": "user", "content": "a"}]}
    assert ids(Files(str(tmp_path / "a.parquet"))) == [f"{tmp_path}/a.parquet:1", f"{tmp_path}/a.parquet:2"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (row,) = Files(str(tmp_path / "bad.parquet")).rows()
    assert "not valid Parquet" in row.error
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as handle:
        handle.write('{"x": 3}\n')
    assert values(Files(str(tmp_path / "a.jsonl.gz"))) == [{"x": 3}]


def test_folders_globs_and_lists_are_read_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    second, first = lines(tmp_path / "sub" / "b.jsonl", [{"x": 2}]), lines(tmp_path / "a.jsonl", [{"x": 1}])
    (tmp_path / "notes.txt").write_text("no data")
    assert ids(Files(str(tmp_path))) == [f"{first}:1", f"{second}:1"]
    assert ids(Files(str(tmp_path / "*.jsonl"))) == [f"{first}:1"]
    assert ids(Files([second, first])) == [f"{second}:1", f"{first}:1"]
    for path, message in [
        ("nowhere.jsonl", "no file to read"),
        (str(tmp_path / "notes.txt"), "no reader for this suffix"),
    ]:
        with pytest.raises(DataError, match=message):
            Files(path)


def test_skip_and_limit_keep_row_numbers(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"x": i} for i in range(10)])
    assert [row.number for row in Files(file, skip=3, limit=2).rows()] == [4, 5]
    with pytest.raises(DataError, match=r"data.source.limit=0"):
        Files(file, limit=0)


def test_rows_are_read_lazily(tmp_path):
    file = tmp_path / "a.jsonl"
    lines(file, [{"x": i} for i in range(100_000)])
    reading = Files(str(file)).rows()
    assert [row.values["x"] for row in islice(reading, 3)] == [0, 1, 2]
    os.truncate(file, 0)  # had the whole file been read already, all rows would still come
    assert len(list(reading)) < 90_000


def test_fingerprint_follows_content_and_options(tmp_path):
    file = lines(tmp_path / "a.jsonl", [{"x": 1}, {"x": 2}])
    first = Files(file).fingerprint()
    assert Files(file).fingerprint() == first
    assert Files(file, limit=1).fingerprint() != first
    os.utime(file, (1, 1))
    assert Files(file).fingerprint() == first
    lines(tmp_path / "a.jsonl", [{"x": 1}, {"x": 3}])
    assert Files(file).fingerprint() != first


def test_packaged_files_and_unknown_names():
    source = Packaged("smollm2_pairs", limit=2)
    assert [row.id for row in source.rows()] == ["packaged/smollm2_pairs.jsonl:1", "packaged/smollm2_pairs.jsonl:2"]
    assert isinstance(source, Source)
    with pytest.raises(DataError, match=r"ships no such data set; it ships:.*smollm2_pairs"):
        Packaged("nothing")


def test_hub_reads_through_load_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = lines(tmp_path / "a.jsonl", [{"x": i} for i in range(4)])
    plain = Hub("json", data_files=file, skip=1, limit=2)
    assert [(row.id, row.values["x"]) for row in plain.rows()] == [("json[train]:2", 1), ("json[train]:3", 2)]
    streamed = Hub("json", data_files=[file], streaming=True)
    assert [row.values["x"] for row in streamed.rows()] == [0, 1, 2, 3]
    assert streamed.fingerprint() is None  # nothing says that the same rows come next time
    pinned = Hub("json", data_files=[file], streaming=True, revision="abc")
    assert pinned.fingerprint() is not None
    assert plain.fingerprint() == Hub("json", data_files=file, skip=1, limit=2).fingerprint() != streamed.fingerprint()


def test_hub_reads_saved_data_sets(tmp_path):
    saved = datasets.DatasetDict(test=datasets.Dataset.from_list([{"x": 7}]))
    saved.save_to_disk(tmp_path / "saved")
    source = Hub(str(tmp_path / "saved"), split="test")
    assert values(source) == [{"x": 7}]


def test_hub_errors_name_the_data_set_and_the_options(tmp_path):
    with pytest.raises(DataError, match=r"cannot load the data set nobody/nothing\[train\](.|\n)*data.source.id"):
        list(Hub("nobody/nothing").rows())


class Numbers:
    """Rows 1 .. count, each with its number as ``x``."""

    def __init__(self, name, count):
        self.name, self.count = name, count

    def rows(self):
        return (Row(self.name, i, {"x": i}) for i in range(1, self.count + 1))

    def fingerprint(self):
        return f"{self.name}{self.count}"


def test_mixture_draws_by_weight_and_seed():
    parts = {"a": Numbers("a", 100_000), "b": Numbers("b", 100_000)}
    drawn = ids(Mixture(parts, {"a": 3, "b": 1}, limit=8000))
    counts = Counter(row[0] for row in drawn)
    assert counts["a"] / 8000 == pytest.approx(0.75, abs=3 * (0.75 * 0.25 / 8000) ** 0.5)
    assert len(set(drawn)) == 8000
    assert [row for row in drawn if row[0] == "a"] == [f"a:{i}" for i in range(1, counts["a"] + 1)]
    assert ids(Mixture(parts, {"a": 3, "b": 1}, limit=8000)) == drawn
    assert ids(Mixture(parts, {"a": 3, "b": 1}, limit=8000, seed=1)) != drawn
    assert Mixture(parts, {"a": 3, "b": 1}).name == "75% a + 25% b"


def test_mixture_stops():
    parts = {"a": Numbers("a", 10), "b": Numbers("b", 400)}
    shortest, longest = ids(Mixture(parts)), ids(Mixture(parts, stop="longest"))
    assert len(shortest) == len(set(shortest))
    assert {f"a:{i}" for i in range(1, 11)} <= set(shortest)
    assert set(longest) == {f"a:{i}" for i in range(1, 11)} | {f"b:{i}" for i in range(1, 401)}
    assert Counter(longest)["a:1"] > 10
    every = ids(Mixture(parts, {"a": 1, "b": 3}, stop="all"))
    assert sorted(every) == sorted(set(longest))
    assert [row for row in every if row[0] == "b"] == [f"b:{i}" for i in range(1, 401)]
    assert Mixture(parts, stop="all").name == "a + b"
    with pytest.raises(DataError, match="empty holds no rows"):
        ids(Mixture({"a": Numbers("a", 5), "e": Numbers("empty", 0)}, stop="longest"))


def test_mixture_renames_columns_of_one_part():
    mixture = Mixture({"a": Numbers("a", 3), "b": Numbers("b", 3)}, columns={"b": {"text": "x"}})
    assert {tuple(row.values) for row in mixture.rows() if row.file == "b"} == {("text",)}
    assert {tuple(row.values) for row in mixture.rows() if row.file == "a"} == {("x",)}


def test_mixture_fingerprint_and_errors():
    parts = {"a": Numbers("a", 3), "b": Numbers("b", 3)}
    assert Mixture(parts).fingerprint() == Mixture(parts).fingerprint() != Mixture(parts, seed=1).fingerprint()
    open_ended = {**parts, "c": Hub("json", streaming=True)}
    assert Mixture(open_ended).fingerprint() is None
    for arguments, message in [
        (({}, None), "must use the names"),
        ((parts, {"a": 1.0}), r"weights has \['a'\]"),
        ((parts, {"a": 1.0, "b": 0.0}), "must be positive"),
    ]:
        with pytest.raises(DataError, match=message):
            Mixture(*arguments)
    with pytest.raises(DataError, match=r"data.source.stop='never'"):
        Mixture(parts, stop="never")
