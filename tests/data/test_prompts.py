"""Prompts alone, for the policy to respond to: read out of every layout, with the row's columns."""

from __future__ import annotations

import datetime
import json
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.inspect import inspect
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.rows.records import as_json
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens import cache
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.data.tokens.tokenize import Tokenized, tokenize
from rlhf_lightning.types import Example, RolloutBatch
from tests.helpers import tokenizers
from tests.helpers.rows import Rows, shared_file

ASKED = "What is 2 + 2?"
USER, RESPONSE = {"role": "user", "content": ASKED}, {"role": "assistant", "content": "4"}
MORE = {"role": "user", "content": "And 3 + 3?"}
#: A row of each layout that asks the same question.
SAME = {
    "prompt": {"prompt": ASKED},
    "prompt_response": {"prompt": ASKED, "response": "4"},
    "empty response": {"prompt": ASKED, "response": ""},
    "no response": {"prompt": ASKED, "response": None},
    "preference": {"prompt": ASKED, "chosen": "4", "rejected": "5"},
    "equal pair": {"prompt": ASKED, "chosen": "4", "rejected": "4"},
    "ranked": {"prompt": ASKED, "responses": ["4", "5"], "scores": [1, 0]},
    "steps": {"prompt": ASKED, "steps": ["4"], "labels": [1]},
    "messages": {"messages": [USER, RESPONSE]},
    "unanswered messages": {"messages": [USER]},
    "sharegpt": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "4"}]},
    "prompt messages": {"prompt": [USER]},
    "alpaca": {"instruction": ASKED, "input": "", "output": "4"},
    "instruction": {"instruction": ASKED},
    "dialogues": {
        "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: 4",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: 5",
    },
    "paraphrase": {"instruction": ASKED, "paraphrase": "2 + 2?", "output": "4"},
}


def made(*rows: dict[str, Any], tokenizer: Any = None, **options: Any) -> Tokenized:
    spec = DataSpec(**{"cache": False, "template": "tokenizer", "max_left_out": 1, **options})
    result = tokenize(Rows(*rows), tokenizer or tokenizers.qwen_like(), spec, "prompt")
    result.report.enforce(spec)
    return result


@pytest.mark.parametrize("layout", SAME)
def test_every_layout_has_the_prompt(layout):
    """The ids are those that generation starts from: the user's turn and the header of the response, nothing of it."""
    tokenizer = tokenizers.qwen_like()
    result = made(SAME[layout])
    (example,) = result.examples
    wanted = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(example.prompt) == wanted
    assert example.responses == [[]]
    columns = result.examples.columns_of(0)
    assert columns == {**SAME[layout], "prompt": [USER]}
    assert (result.report.kept, result.report.groups, result.report.scored_tokens) == (1, 1, 0)


@pytest.mark.parametrize("boundary", ["ids", "prefix"])
def test_plain_text_stays_text(boundary):
    tokenizer = tokenizers.llama_like()
    result = made({"prompt": ASKED, "response": "4"}, tokenizer=tokenizer, template="none", boundary=boundary)
    demonstration = tokenize(
        Rows({"prompt": ASKED, "response": "4"}), tokenizer, DataSpec(cache=False, template="none"), "supervised"
    )
    assert result.examples[0].prompt == demonstration.examples[0].prompt
    assert result.examples.columns_of(0) == {"prompt": ASKED, "response": "4"}
    assert result.report.boundary_checked == 0


def test_a_conversation_is_asked_up_to_its_last_response():
    turns = [USER, RESPONSE, MORE]
    rows = [{"messages": [*turns, RESPONSE]}, {"messages": turns}]
    assert [made(row).examples.columns_of(0)["prompt"] for row in rows] == [turns, turns]


def test_columns_keep_their_own_names_and_values():
    row = {"question": ASKED, "answer": "#### 4", "tests": [{"in": 1, "out": None}], "level": 3, "ünïcode": "é"}
    columns = made(row, columns={"prompt": "question"}).examples.columns_of(0)
    assert columns == {**row, "prompt": [USER]}


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"text": ASKED}, {"columns": {"prompt": "text"}}),  # as the error for a text alone says
        ({"prompt": ASKED, "text": "of a report"}, {}),
    ],
)
def test_a_text_is_asked_where_it_is_the_prompt(row, options):
    result = made(row, template="none", **options)
    assert result.examples.columns_of(0)["prompt"] == ASKED
    assert result.report.formats == {"prompt": 1}


def test_columns_that_say_something_of_responses_are_not_asked_for():
    """Validation's lists may have them where the prompts' rows have not; a misspelt prompt is still named."""
    columns = {"scores": "wins", "win_chosen": "wins"}
    assert made({"prompt": "a"}, columns=columns).report.kept == 1
    with pytest.raises(DataError, match=r"columns\.prompt=question: no such column"):
        made({"prompt": "a"}, columns={**columns, "prompt": "question"})


def test_what_json_cannot_hold_is_left_out_and_noted():
    result = made({"prompt": ASKED, "when": datetime.date(2026, 1, 1), "answer": "4"})
    assert result.examples.columns_of(0) == {"prompt": [USER], "answer": "4"}
    assert [note for note in result.report.notes if "the column 'when'" in note]
    assert as_json({"a": 1, "b": {2}, "c": "x"}) == ('{"a": 1, "c": "x"}', ["b"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "once upon a time"},
            r"rows:1: empty prompt: plain text has no prompt.*data.spec.columns.prompt=text",
        ),
        ({"prompt": "  "}, "rows:1: empty prompt"),
        ({"prompt": 3}, "rows:1: wrong type: 'prompt' must be"),
        ({"question": ASKED}, r"(?s)no format fits.*data.spec.columns.prompt=question"),
    ],
)
def test_rows_without_a_prompt_are_named(row, message):
    with pytest.raises(DataError, match=message):
        made(row)


def test_a_prompt_over_the_limit_is_counted_and_left_out():
    result = made({"prompt": ASKED}, {"prompt": ASKED * 20}, max_prompt_length=40)
    assert (result.report.kept, result.report.excluded) == (1, {"too long": 1})
    cut = made({"prompt": ASKED * 20}, max_prompt_length=40, too_long="keep_end")
    assert len(cut.examples[0].prompt) == 40


def test_scored_samples_of_a_prompt_ask_it_once():
    """Output of ``rlhf generate samples=3 reward=...`` serves offline and on-policy methods alike."""
    rows = [
        {"prompt": f"q{number}", "response": f"r{number} {draw}", "score": draw, "answer": "x"}
        for number in range(4)
        for draw in range(3)
    ]
    result = made(*rows)
    assert [result.examples.columns_of(group)["prompt"][0]["content"] for group in range(4)] == ["q0", "q1", "q2", "q3"]
    assert len(result.examples) == 4
    assert (result.report.kept, result.report.groups, result.report.warnings) == (12, 4, {})
    assert result.examples.numbers == {}
    assert "12 scored responses with a row each are 4 prompts" in result.report.notes
    apart = made(*rows, gather=False)
    assert (len(apart.examples), apart.report.warnings) == (12, {"duplicate": 8})


def test_prompts_serve_no_other_method():
    """A row of a pair's layout that lacks a response is an error of that layout, not called a prompt."""
    spec = DataSpec(cache=False)
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    bad = tokenize(Rows(pair, {"prompt": "p", "chosen": "c"}), tokenizers.qwen_like(), spec, "preference")
    assert "no 'rejected'" in bad.report.problems[0].message
    with pytest.raises(DataError, match=r"learns from demonstrations, and rows holds prompts \(format prompt\)"):
        tokenize(Rows({"prompt": "p"}), tokenizers.qwen_like(), DataSpec(cache=False, format="prompt"), "supervised")


# Examples


def prompts(count: int = 6) -> Examples:
    listed = [
        Example([1, 2, number], [[]], row=f"f:{number}", columns=json.dumps({"n": number})) for number in range(count)
    ]
    return Examples.build(listed)


def test_columns_survive_selection_slices_and_single_examples():
    examples = prompts()
    chosen = examples.select(np.array([4, 1]))
    assert [chosen.columns_of(group) for group in (0, 1)] == [{"n": 4}, {"n": 1}]
    assert examples[2:4].columns_of(1) == {"n": 3}
    assert Examples.build(list(chosen)).columns_of(0) == {"n": 4}
    assert chosen[0] == Example([1, 2, 4], [[]], row="f:4", columns='{"n": 4}')
    assert Examples.build([Example([1], [[]])]).columns_of(0) == {}


def test_lengths_are_those_of_the_prompts():
    examples = Examples.build([Example([1, 2, 3], [[]]), Example([4], [[]])])
    assert examples.lengths.tolist() == examples.padded_lengths.tolist() == [3, 1]
    assert examples.slot_tokens.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (
            [Example([1], [[]]), Example([1], [[2]], row="f:2")],
            "f:2: a response where earlier examples are prompts",
        ),
        ([Example([1], [[2]]), Example([1], [[]], row="f:2")], "f:2: no response has a token"),
        ([Example([], [[]], row="f:1")], "f:1: the prompt has no token"),
    ],
)
def test_prompts_and_responses_do_not_mix(listed, message):
    with pytest.raises(ValueError, match=message):
        Examples.build(listed)


def test_pairs_become_prompts_in_the_data_module():
    pairs = [Example([1, number], [[2], [3, 4]], margin=1.0, row=f"f:{number}") for number in range(20)]
    module = AlignmentDataModule(pairs, kind="prompt", validation=0.2, batch_size=64)
    module.setup("fit")
    parts = (module.train_examples, module.val_examples)
    assert sum(map(len, parts)) == 20
    assert all(example.responses == [[]] and example.margin is None for part in parts for example in part)
    assert not any("steps" in line or "scored" in line for line in module.summaries())


def test_packed_responses_to_prompts_are_a_rollout():
    batch = pack([Example([1, 2], [[3, 4], [5]])], kind="prompt")
    assert type(batch) is RolloutBatch
    assert batch.advantage is None


# The cache and the split


def test_columns_come_back_from_the_cache(tmp_path):
    spec = DataSpec(cache_dir=str(tmp_path), template="tokenizer")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b", "answer": "2"}\n')
    source = Files(str(rows), name="rows")
    first, second = (tokenize(source, tokenizers.qwen_like(), spec, "prompt") for _ in range(2))
    assert len(list((tmp_path / "tokenised").glob("*/rows.arrow"))) == 1
    for result in (first, second):
        assert [result.examples.columns_of(group)["answer"] for group in (0, 1)] == ["1", "2"]
        assert result.examples.rows() == ["rows:1", "rows:2"]
    assert second.examples[1] == first.examples[1]
    assert "columns" in cache.COLUMNS  # part of the key


def test_a_prompt_is_trained_on_or_validated_never_both():
    rows = [{"prompt": f"question {number % 15}", "answer": str(number)} for number in range(60)]
    module = AlignmentDataModule(
        Rows(*rows), tokenizers.qwen_like(), "prompt", validation=0.3, spec=DataSpec(cache=False)
    )
    module.setup("fit")
    seen = [
        {part.columns_of(g)["prompt"] for g in range(len(part))}
        for part in (module.train_examples, module.val_examples)
    ]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 15
    assert {module.val_examples.columns_of(g)["answer"] for g in range(len(module.val_examples))} == {
        row["answer"] for row in rows if row["prompt"] in seen[1]
    }


# What people see


def test_inspection_shows_prompts_and_what_rewards_see():
    result = made({"prompt": ASKED, "answer": "x" * 300, "n": [1, 2]})
    out = StringIO()
    inspect(result.examples, result.report, tokenizers.qwen_like(), Console(file=out, width=100), rows=1)
    text = out.getvalue()
    assert "for prompt training" in text
    assert ASKED in text
    assert "x ... 300 characters" in text.replace("│\n│ ", "").replace("  ", " ")
    assert "n  [1, 2]" in text
    assert "scored" not in text
    assert "response" not in text.replace("prompt_response", "")
    assert "longest" not in text


# Data sets


def test_sentiment_prompts_are_openings_to_continue():
    data = make(compose("data", ["model=smollm2", "data=sentiment_prompts"]).data)
    module = data(tokenizer=tokenizers.qwen_like(), kind="prompt", seed=0)
    module.setup("fit")
    (report,) = module.reports.values()
    assert (report.kept, report.excluded, report.warnings, report.notes) == (120, {}, {}, [])
    openings = [module.train_examples.columns_of(group) for group in range(len(module.train_examples))]
    assert len({row["topic"] for row in openings}) == 10
    assert not any(row["prompt"].endswith((".", "!", "?", " ")) for row in openings)


def test_gsm8k_keeps_its_gold_answers():
    file = shared_file("gsm8k_train_500.jsonl")
    spec = make(compose("data", ["data=gsm8k", "data.spec.cache=false"]).data.spec)
    source = make(compose("data", ["data=json", f"data.source.path={file}"]).data.source)
    result = tokenize(source, tokenizers.qwen_like(), spec, "prompt")
    assert result.report.kept == 500
    for group in (0, 499):
        columns = result.examples.columns_of(group)
        assert "#### " in columns["answer"]
        assert columns["prompt"] == [{"role": "user", "content": columns["question"]}]


@pytest.mark.parametrize(
    "name",
    ["sharegpt_pairs_200.json", "messages_unpaired_200.json", "alpaca_instructions_400.json", "hh_dialogues_300.jsonl"],
)
def test_published_layouts_give_a_prompt_each(name):
    source = make(compose("data", ["data=json", f"data.source.path={shared_file(name)}"]).data.source)
    result = tokenize(source, tokenizers.qwen_like(), DataSpec(cache=False, max_length=None), "prompt")
    assert result.report.kept == result.report.rows
    assert all(
        result.examples.columns_of(group)["prompt"][-1]["role"] == "user" for group in range(len(result.examples))
    )
