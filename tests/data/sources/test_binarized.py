"""Pairs that become two statements about quality each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.data import Files
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.binarized import Binarized


def source(tmp_path: Path, *rows: object) -> Files:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Files(str(path))


def test_each_response_is_compared_with_itself(tmp_path: Path) -> None:
    pairs = Binarized(source(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}), good=" +", bad=" -")
    made = [(row.values["prompt"], row.values["chosen"], row.values["rejected"]) for row in pairs.rows()]
    assert made == [("q", "a +", "a -"), ("q", "b -", "b +")]
    assert len({row.id for row in pairs.rows()}) == 1


def test_the_last_message_gets_the_label(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (first, _) = Binarized(source(tmp_path, {"chosen": turns, "rejected": turns})).rows()
    assert first.values["chosen"] == [turns[0], {"role": "assistant", "content": "a\nGOOD"}]
    assert turns[1]["content"] == "a"


def test_rows_without_pairs_are_reported(tmp_path: Path) -> None:
    (row,) = Binarized(source(tmp_path, {"prompt": "q", "chosen": "a"})).rows()
    assert row.error is not None


def test_the_fingerprint_knows_the_labels(tmp_path: Path) -> None:
    inner = source(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"})
    prints = {Binarized(inner).fingerprint(), Binarized(inner, good="yes").fingerprint(), inner.fingerprint()}
    assert len(prints) == 3


def test_columns_by_other_names(tmp_path: Path) -> None:
    pairs = Binarized(source(tmp_path, {"j": "a", "k": "b"}), good="+", bad="-", chosen="j", rejected="k")
    assert [row.values["chosen"] for row in pairs.rows()] == ["a+", "b-"]


def test_labels_must_differ(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must differ"):
        Binarized(source(tmp_path, {}), good="x", bad="x")
