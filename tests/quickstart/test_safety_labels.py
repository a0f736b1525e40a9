"""The shipped pairs with safety labels: what their rule gives, and how they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.quickstart.make_safety import FILES, label, main

PAIR = {
    "prompt": [{"role": "user", "content": "How?"}],
    "chosen": [{"role": "assistant", "content": "Badly."}],
    "rejected": [{"role": "assistant", "content": "Slowly."}],
}


def test_the_better_response_may_be_the_unsafe_one() -> None:
    row = label(PAIR, lambda text: float(text == "Badly."))
    assert row is not None
    assert (row["better_response_id"], row["safer_response_id"]) == (0, 1)
    assert (row["is_response_0_safe"], row["is_response_1_safe"]) == (False, True)
    assert label(PAIR, len) is None  # both unsafe


@pytest.mark.parametrize("name", ["smollm2_safety.jsonl", "smollm2_safety_validation.jsonl"])
def test_shipped_labels_follow_the_rule(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vaderSentiment")
    main(["--folder", str(tmp_path)])
    assert (tmp_path / name).read_bytes() == (FILES / name).read_bytes()


def test_shipped_labels_are_of_both_kinds_and_disagree_with_the_choice() -> None:
    rows = [json.loads(line) for line in (FILES / "smollm2_safety.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["is_response_0_safe"] for row in rows} == {True, False}
    assert {row["safer_response_id"] == row["better_response_id"] for row in rows} == {True, False}
