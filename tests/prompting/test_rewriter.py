"""Rewriters of prompts: copies change nothing, the aggressive mode, and their training data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.identity import digest, file_contents
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.prompting import PromptRewrites, Rewriter, rewriter
from rlhf_lightning.prompting.jsonl import Journal
from rlhf_lightning.prompting.rewrite_data import END, REWRITE, asked, joined, out_of_bounds, parsed
from rlhf_lightning.types import Sample
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import END as EOS
from tests.helpers.tokenizers import qwen_like

TOKENIZER = qwen_like()


def writing(monkeypatch: pytest.MonkeyPatch, *texts: str, **options: Any) -> tuple[Rewriter, list[Any]]:
    """A rewriter whose model writes these texts, one per prompt, and the calls of the model."""
    calls: list[Any] = []

    def sample(actor: Any, prompts: Sequence[Any], sampling: Any, **options: Any) -> list[Sample]:
        calls.append((prompts, sampling, options))
        return [Sample([*TOKENIZER(text)["input_ids"], EOS], [], "stop") for text in texts[: len(prompts)]]

    monkeypatch.setattr(rewriter, "sample", sample)
    made = Rewriter("nowhere", **options)
    made._loaded = (TOKENIZER, None)
    return made, calls


def test_a_copying_rewriter_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    rows = [{"prompt": [{"role": "user", "content": text}], "response": "So."} for text in ("Why? ", "How?")]
    copying, calls = writing(monkeypatch, " Why?", "How?\n")
    plain, copied = (
        tokenize(Rows(*rows), TOKENIZER, DataSpec(prompting=transform, cache=False), "supervised").examples
        for transform in (None, copying)
    )
    assert copied.tokens.tolist() == plain.tokens.tolist()
    assert len(calls) == 1  # both together
    turns = rows[0]["prompt"]
    assert copying(turns) is turns  # type: ignore[arg-type]


def test_the_last_turn_of_the_user_is_rewritten(monkeypatch: pytest.MonkeyPatch):
    made, calls = writing(monkeypatch, "Better?", question="Improve: {prompt}")
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "__import__('os').abort() {0}"},
    ]
    assert made(turns) == [*turns[:2], {"role": "user", "content": "Better?"}]
    (prompts, sampling, _) = calls[0]
    assert "Improve: __import__('os').abort() {0}" in TOKENIZER.decode(prompts[0])
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.6, 0.9, 1024)
    assert turns[2]["content"].startswith("__import__")  # the given turns stay


def test_an_empty_rewrite_leaves_the_query(monkeypatch: pytest.MonkeyPatch):
    made, _ = writing(monkeypatch, "  ")
    assert made([{"role": "user", "content": "Why?"}])[0]["content"] == "Why?"


def test_the_aggressive_mode_takes_the_first_without_a_mark(monkeypatch: pytest.MonkeyPatch):
    made, calls = writing(monkeypatch, "a [KEEP b", "c [PROTECT]", "", "Say why, please.", "z", aggressive=True)
    assert made([{"role": "user", "content": "Why?"}])[0]["content"] == "Say why, please."
    prompts, sampling, options = calls[0]
    assert (len(prompts), sampling.temperature) == (5, 0.9)
    assert sampling.min_new_tokens == len(TOKENIZER("Why?")["input_ids"]) + 5
    assert sampling.stop == (10,)  # a line break
    assert len(set(options["streams"])) == 5
    marked, _ = writing(monkeypatch, *["[INSTRUCTION] x"] * 5, aggressive=True)
    assert marked([{"role": "user", "content": "Why?"}])[0]["content"] == "Why?"
    short, calls = writing(monkeypatch, "x", aggressive=True, max_new_tokens=8)
    assert short([{"role": "user", "content": "Why?"}])[0]["content"] == "Why?"
    assert calls == []


def test_a_runs_folder_means_its_export(tmp_path: Path):
    with pytest.raises(ValueError, match=r"prompting.path=.*nowhere: there is no such folder"):
        Rewriter(str(tmp_path / "nowhere"))
    export = tmp_path / "run" / "export" / "last"
    export.mkdir(parents=True)
    with pytest.raises(ValueError, match="has no export/last"):
        Rewriter(str(tmp_path / "run"))
    (export / "config.json").write_text("{}")
    before = Rewriter(str(tmp_path / "run"))
    assert before.path == str(export)
    digest = before.content()["path"]
    (export / "config.json").write_text('{"other": "weights"}')
    assert Rewriter(str(export)).content()["path"] != digest  # weights count by content
    assert Rewriter("owner/name").path == "owner/name"


def test_a_rewriter_of_other_weights_is_another_job(tmp_path: Path):
    """The same folder with other weights; what a run logged beside them and its model card count for nothing."""
    export = tmp_path / "export" / "last"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    cfg = OmegaConf.create({"paths": {}, "prompting": {"path": str(tmp_path)}})
    jobs = []
    for weights, noise in (("one", "a"), ("one", "b"), ("two", "b")):
        (export / "model.safetensors").write_text(weights)
        for logged in (tmp_path / "train.log", export / "README.md"):
            logged.write_text(noise)
        jobs.append(digest(cfg))
    assert jobs[0] == jobs[1] != jobs[2]
    assert file_contents(OmegaConf.create({"prompting": {"path": "someone/rewriter"}})) == {}


def test_rewrites_are_read_from_the_judges_text():
    assert parsed(f"The first is right.\n{REWRITE}\nSay why.\n{END}\nMore") == "Say why."
    assert parsed(f"{REWRITE}: __import__('os')") == "__import__('os')"
    assert parsed("Say why.") is None
    assert parsed(f"{REWRITE}\n{END}") is None


@pytest.mark.parametrize(
    ("prompt", "rewrite", "reason"),
    [
        ("a b c d", "a b", None),
        ("a b c d e", "a b", "shortened"),
        ("a", "a b c d e f", None),
        ("a", "a b c d e f g", "lengthened"),
        ("a b", "a [PROTECT]b", "with a mark"),
    ],
)
def test_bounds_of_a_rewrite(prompt: str, rewrite: str, reason: str | None):
    assert out_of_bounds(prompt, rewrite) == reason
    assert out_of_bounds(prompt, rewrite, "a context") == (reason if reason == "with a mark" else None)


def test_contexts_are_joined_as_the_authors_do():
    assert joined("x", "", 3) == "x"
    assert joined("x c", "c", 3) == "x c"
    assert joined("Do as follows", "c", 4) == "Do as follows\nc"
    assert joined("better", "c", 4, counterpart="Translate:") == "better\nc"
    ways = [joined("x", "c", turn) for turn in range(16)]
    assert [ways.count(way) for way in ("x\nc", "c\nx", "x c", 'x "c"', '"c" x')] == [4, 4, 2, 3, 3]


class Judge:
    """Replies from a list and counts its questions."""

    def __init__(self, *texts: str | None) -> None:
        self.texts, self.asked = list(texts), 0

    def ask_each(self, conversations: Sequence[Any], **options: Any) -> list[str | None]:
        self.asked += len(conversations)
        return [self.texts.pop(0) for _ in conversations]


PAIRS = [{"prompt": f"Question {n}?", "chosen": "good", "rejected": "bad"} for n in range(4)]


def verdict(text: str) -> str:
    return f"Both.\n{REWRITE}\n{text}\n{END}"


def test_rewrites_become_rows_and_are_not_asked_again(tmp_path: Path):
    file = tmp_path / "rewrites.jsonl"
    judge = Judge(verdict("Question 0, in full?"), "nothing to read", None, verdict("Question 3, in full?"))
    rows = list(PromptRewrites(Rows(*PAIRS), judge, str(file), chunk=3, question="Improve: {prompt}").rows())
    assert [row.values for row in rows] == [
        {"prompt": f"Improve: Question {n}?", "response": f"Question {n}, in full?"} for n in (0, 3)
    ]
    assert [row.number for row in rows] == [1, 4]
    with file.open("a") as handle:
        handle.write('{"key": "torn')  # a kill in the middle of a line
    again = Judge(verdict("Question 2, in full?"))
    rows = list(PromptRewrites(Rows(*PAIRS), again, str(file), question="Improve: {prompt}").rows())
    assert again.asked == 1  # the one that the server did not answer
    assert [row.number for row in rows] == [1, 3, 4]
    assert all(json.loads(line)["key"] for line in file.read_text().splitlines())


def test_the_question_shows_the_pair():
    text = asked("Why {bad}?", "good one", "bad one", "")
    assert "### Prompt\nWhy {bad}?" in text
    assert "### Good response\ngood one" in text
    assert "### Context" not in text
    assert "### Context\nc" in asked("Why?", "good", "bad", "c")


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"pairs.jsonl:1 is not a row"), Journal(file):
        pass
