"""Retrieved rules: choice, budget, and options that are refused before weights load."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.prompting import Rules
from rlhf_lightning.prompting.retrieval import TfIdf, nearest
from tests.helpers.tokenizers import qwen_like

RULES = [
    {"text": "Anglers need a licence to fish in rivers.", "source": "Water act", "region": "national"},
    {"text": "Fish under thirty centimetres go back into rivers.", "region": "Norland"},
    {"text": "Fish may be caught in rivers at night.", "region": "Sudland"},
    {"text": "Dogs are kept on a lead.", "region": "national"},
]
QUERY = "May I keep small fish from rivers in Norland?"


def rules(tmp_path: Path, rows: list[dict[str, str]] = RULES, **options: Any) -> Rules:
    file = tmp_path / "rules.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = Rules(str(file), **options)
    made.begin(qwen_like())
    return made


def prompt(transform: Rules, query: str = QUERY) -> str:
    return str(transform([{"role": "user", "content": query}])[-1]["content"])


def test_golden_tf_idf():
    """Two texts, one word in common: idf 1 of the shared one, ln(3/2) + 1 of the others."""
    other = math.log(3 / 2) + 1
    a, b = TfIdf(["red fish", "red dog"]).similarities("red fish")
    assert a == pytest.approx(1)
    assert b == pytest.approx(1 / (1 + other**2))
    assert TfIdf(["red fish", "red dog"]).similarities("bird") == [0, 0]


def test_equal_rules_come_in_the_order_of_the_file_and_unrelated_ones_never():
    assert nearest([0.5, 0.9, 0.5, 0.0], [0, 1, 2, 3], 4) == [1, 0, 2]


def test_the_filter_comes_before_the_nearest(tmp_path: Path):
    """The nearest rule is another region's: a filter behind the top 2 would leave one rule too few."""
    listed = rules(tmp_path, top_k=2, field="region", always=["national"]).listed(QUERY)
    assert sorted(listed) == ["Fish under thirty centimetres go back into rivers.", "Water act: " + RULES[0]["text"]]
    assert RULES[2]["text"] in rules(tmp_path, top_k=3).listed(QUERY)


def test_a_budget_takes_whole_rules(tmp_path: Path):
    first, second = rules(tmp_path, top_k=2).listed(QUERY)
    exactly = len(f"{first}\n{second}".replace(" h", "*").replace("hi", "*"))  # two merges of the byte tokenizer
    counted = len(qwen_like()(f"{first}\n{second}")["input_ids"])
    assert counted <= exactly
    assert rules(tmp_path, top_k=2, max_tokens=counted).listed(QUERY) == [first, second]
    assert rules(tmp_path, top_k=2, max_tokens=counted - 1).listed(QUERY) == [first]
    with pytest.raises(ValueError, match=r"prompting.max_tokens=8 is too small for rule 1"):
        rules(tmp_path, max_tokens=8)


def test_an_edited_rule_changes_the_prompt_and_the_key(tmp_path: Path):
    before = rules(tmp_path)
    texts, digests = [prompt(before)], [DataSpec(prompting=before).digest()]
    edited = [*RULES]
    edited[1] = {**RULES[1], "text": "Small fish from rivers may be kept."}
    after = rules(tmp_path, edited)
    assert "may be kept" in prompt(after)
    assert prompt(after) not in texts
    assert DataSpec(prompting=after).digest() not in digests


def test_a_query_without_a_rule_is_left_as_it_is(tmp_path: Path):
    turns = [{"role": "user", "content": "Sing!"}]
    assert rules(tmp_path)(turns) is turns
    assert prompt(rules(tmp_path), "fish {rules} rivers").endswith("\n\nfish {rules} rivers")  # braces are text


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "has no rules"),
        ([{"rule": "x"}], {}, r'rules.jsonl:1 must have a text under "text"'),
        (RULES, {"field": "country"}, "prompting.field=country: no rule"),
        (RULES, {"always": ["national"]}, "prompting.always"),
        (RULES, {"template": "{prompt}"}, "must contain {rules}"),
    ],
)
def test_wrong_rules_and_options_are_refused(tmp_path: Path, rows: Any, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        rules(tmp_path, rows, **options)


def test_embeddings_are_compared_by_their_cosine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model's embedding marks which of three words a text has."""

    class Model:
        def __init__(self, name: str) -> None:
            assert name == "words"

        def encode(self, texts: list[str], *, normalize_embeddings: bool, show_progress_bar: bool) -> Any:
            vectors = np.array([[float(word in text) for word in ("fish", "rivers", "Dogs")] for text in texts])
            return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))
    assert rules(tmp_path, embedder="words", top_k=1).listed("Dogs") == [RULES[3]["text"]]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"rlhf-lightning\[retrieval\]"):
        rules(tmp_path, embedder="words").listed("Dogs")
