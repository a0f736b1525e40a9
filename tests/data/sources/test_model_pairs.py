"""Responses of two models as pairs: partners, rows that are left out, and rows that are refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.data import DataError, Files, ModelPairs


def source(path: Path, *rows: dict[str, Any]) -> Files:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Files(str(path))


def text(prompt: Any, response: str) -> dict[str, Any]:
    return {"prompt": prompt, "response": response}


def drawn(prompt_ids: list[int], ids: list[int], prompt: str = "p") -> dict[str, Any]:
    return {"prompt": prompt, "response": "r", "prompt_ids": prompt_ids, "ids": ids, "source": "policy"}


def test_the_ith_responses_to_a_prompt_are_a_pair(tmp_path):
    chosen = source(tmp_path / "tuned.jsonl", text("a", "a1"), text("b", "b1"), text("a", "a2"))
    rejected = source(tmp_path / "initial.jsonl", text("b", "-b1"), text("a", "-a1"), text("a", "-a2"))
    pairs = ModelPairs(chosen, rejected)
    assert [row.values for row in pairs.rows()] == [
        {"prompt": "a", "chosen": "a1", "rejected": "-a1"},
        {"prompt": "b", "chosen": "b1", "rejected": "-b1"},
        {"prompt": "a", "chosen": "a2", "rejected": "-a2"},
    ]
    assert [row.number for row in pairs.rows()] == [1, 2, 3]
    cut = source(tmp_path / "cut.jsonl", {**text("a", "a"), "finish": "length"})
    ended = source(tmp_path / "ended.jsonl", {**text("a", "b"), "finish": "stop"})
    assert [row.values["finish"] for row in ModelPairs(cut, ended).rows()] == [["length", "stop"]]
    turns = [{"role": "user", "content": "a"}]
    other = ModelPairs(
        source(tmp_path / "x.jsonl", text(turns, "x")), source(tmp_path / "y.jsonl", text("a", "no"), text(turns, "y"))
    )
    assert [row.values["rejected"] for row in other.rows()] == ["y"]


def test_tokens_are_taken_as_they_were_drawn(tmp_path):
    chosen = source(tmp_path / "tuned.jsonl", drawn([5, 9], [7, 2]), drawn([5, 8], [1]))
    rejected = source(tmp_path / "initial.jsonl", drawn([5, 8], [3]), drawn([5, 9], [8, 2]))
    ids = [(row.values["prompt_ids"], row.values["response_ids"]) for row in ModelPairs(chosen, rejected).rows()]
    assert ids == [([5, 9], [[7, 2], [8, 2]]), ([5, 8], [[1], [3]])]


def test_rows_that_make_no_pair_are_counted(tmp_path, caplog):
    chosen = source(tmp_path / "tuned.jsonl", text("a", "same"), text("a", "a2"), text("c", "alone"), text("a", "more"))
    rejected = source(tmp_path / "initial.jsonl", text("a", "same"), text("a", "-a2"), text("d", "alone"))
    with caplog.at_level(logging.INFO):
        rows = list(ModelPairs(chosen, rejected).rows())
    assert [row.values["chosen"] for row in rows] == ["a2"]
    assert "left out 2 responses without a partner, 1 pairs of equal responses" in caplog.text


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        (text("b", "x"), r"no pair \(1 responses without a partner, 0 pairs"),
        (drawn([1], [2], prompt="a"), r"no pair .* both as tokens"),
        ({"prompt": "a", "answer": "x"}, r"initial\.jsonl:1: a row needs the columns prompt and response"),
    ],
    ids=["another-prompt", "tokens-and-text", "no-response"],
)
def test_sources_that_make_no_pairs_are_refused(tmp_path, rejected, message):
    pairs = ModelPairs(source(tmp_path / "tuned.jsonl", text("a", "x")), source(tmp_path / "initial.jsonl", rejected))
    with pytest.raises(DataError, match=message):
        list(pairs.rows())


def test_the_fingerprint_follows_both_files(tmp_path):
    one = ModelPairs(source(tmp_path / "a.jsonl", text("a", "x")), source(tmp_path / "b.jsonl", text("a", "y")))
    before = one.fingerprint()
    assert before == ModelPairs(Files(str(tmp_path / "a.jsonl")), Files(str(tmp_path / "b.jsonl"))).fingerprint()
    source(tmp_path / "b.jsonl", text("a", "z"))
    assert one.fingerprint() != before
