"""The win rate of one file of responses over another: ties, order, errors, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.rewards import ComparisonJudge, WinRate, as_reward
from tests.helpers.tokenizers import qwen_like

TOKENIZER = qwen_like()


def write(file: Path, rows: Sequence[tuple[str, str]]) -> str:
    file.write_text("".join(json.dumps({"prompt": prompt, "response": text}) + "\n" for prompt, text in rows))
    return str(file)


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def rate(tmp_path: Path, first: Any, second: Any, reward: Any) -> dict[str, float]:
    files = write(tmp_path / "first.jsonl", first), write(tmp_path / "second.jsonl", second)
    return WinRate(*files)(reward, ids, ids)


def length(prompt: str, response: str, **columns: object) -> float | None:
    return None if response == "?" else float(len(response))


def test_golden_counts_ties_and_error(tmp_path: Path):
    """Two prompts: one won and tied, one lost: means 3/4 and 0, so 3/8 with the error of two numbers."""
    first = [("a", "long"), ("a", "same"), ("b", "x"), ("c", "alone")]
    second = [("a", "no"), ("a", "even"), ("b", "longer")]
    rates = rate(tmp_path, first, second, as_reward(length, TOKENIZER))
    expected = {
        "pairs": 3,
        "left_out": 1,
        "unjudged": 0,
        "win_rate": 0.375,
        "wins": 1 / 3,
        "ties": 1 / 3,
        "losses": 1 / 3,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert rates["win_rate_error"] == pytest.approx(0.75 / math.sqrt(2) / math.sqrt(2))


def test_the_same_file_twice_is_exactly_half(tmp_path: Path):
    rows = [("a", "long"), ("b", "x")]
    rates = rate(tmp_path, rows, rows, as_reward(length, TOKENIZER))
    assert (rates["win_rate"], rates["ties"], rates["win_rate_error"]) == (0.5, 1.0, 0.0)


def test_what_cannot_be_judged_is_counted(tmp_path: Path):
    rates = rate(tmp_path, [("a", "?"), ("b", "xx")], [("a", "x"), ("b", "x")], as_reward(length, TOKENIZER))
    assert (rates["unjudged"], rates["win_rate"]) == (0.5, 1.0)
    assert "win_rate" not in rate(tmp_path, [("a", "?")], [("a", "x")], as_reward(length, TOKENIZER))


class First:
    """A judge that always prefers what it is shown first, but for one prompt."""

    def ask_each(self, conversations: Sequence[Any], **options: Any) -> list[str]:
        texts = [conversation[-1]["content"] for conversation in conversations]
        return ["[[A]]" if "plain" in text or text.index("good") < text.index("bad") else "[[B]]" for text in texts]


def test_order_is_counted(tmp_path: Path):
    judge = ComparisonJudge(TOKENIZER, judge=First())
    rates = rate(tmp_path, [("plain", "one"), ("q", "good")], [("plain", "two"), ("q", "bad")], judge)
    assert (rates["wins"], rates["ties"], rates["losses"]) == (0.5, 0.5, 0.0)
    assert (rates["consistent"], rates["first"]) == (0.5, 0.75)
    swapped = rate(tmp_path, [("q", "bad")], [("q", "good")], judge)
    assert swapped["win_rate"] == 0.0


def test_files_are_refused(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [("a", "x")])
    with pytest.raises(ValueError, match=r"evaluation.second=/nowhere.jsonl: there is no such file"):
        WinRate(file, "/nowhere.jsonl")
    with pytest.raises(ValueError, match="no prompt in common"):
        WinRate(file, write(tmp_path / "b.jsonl", [("b", "x")]))
    (tmp_path / "c.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"evaluation.first=.*c.jsonl:1 must have texts"):
        WinRate(str(tmp_path / "c.jsonl"), file)
