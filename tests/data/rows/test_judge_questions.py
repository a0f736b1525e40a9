"""Pairs as questions for a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.data import DataSpec, Files
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.types import ComparisonBatch, Ragged

SPEC = {"comparison": "{prompt}|{first}|{second}=", "cache": False}


def tokenized(tmp_path: Path, row: dict[str, object], **options: object):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    tokenizer = TinyRandom().tokenizer()
    return tokenizer, tokenize(Files(str(path)), tokenizer, DataSpec(**(SPEC | options)), "comparison")


def test_both_orders_with_the_right_letter_first(tmp_path: Path) -> None:
    tokenizer, made = tokenized(tmp_path, {"prompt": "q", "chosen": "good", "rejected": "bad"})
    batch = pack(made.examples, kind="comparison")
    assert isinstance(batch, ComparisonBatch)
    prompts = [tokenizer.decode(batch.ids[a:b], skip_special_tokens=True) for a, b in batch.prompt_span.tolist()]
    responses = [tokenizer.decode(batch.ids[a:b], skip_special_tokens=True) for a, b in batch.response_span.tolist()]
    assert prompts == ["q|good|bad=", "q|bad|good="]
    assert responses == ["A", "B", "B", "A"]
    assert batch.parent.tolist() == [0, 0, 1, 1]
    assert len(batch) == 1


def test_views_follow_the_orders(tmp_path: Path) -> None:
    _, made = tokenized(tmp_path, {"prompt": "q", "chosen": "good", "rejected": "bad"})
    batch = pack(made.examples, kind="comparison")
    values = Ragged(batch.sequence.float(), batch.sequence, 4)
    verdict, swapped = batch.verdicts(values)
    assert [side.mean().tolist() for side in (verdict.chosen, verdict.rejected)] == [[0.0], [1.0]]
    assert [side.mean().tolist() for side in (swapped.chosen, swapped.rejected)] == [[2.0], [3.0]]


def test_conversations_keep_their_speakers(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "why"},
    ]
    row = {
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": "so"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    tokenizer, made = tokenized(tmp_path, row)
    text = tokenizer.decode(made.examples[0].prompt)
    assert "User: hi\nAssistant: yes?\nUser: why|so|no=" in text


def test_other_verdicts(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    tokenizer, made = tokenized(tmp_path, row, verdicts=["one", "two"])
    assert tokenizer.decode(made.examples[0].responses[2], skip_special_tokens=True) == "two"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"comparison": "{prompt} {first}"}, "must contain {second}"),
        ({"verdicts": ["A", "A"]}, "two different texts"),
    ],
)
def test_impossible_questions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSpec(**options)  # type: ignore[arg-type]


def test_rows_without_a_pair_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comparisons"):
        tokenized(tmp_path, {"prompt": "q", "response": "good"})
