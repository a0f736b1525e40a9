"""URIAL's prompt: the text to the letter, its stops, and one prompt in rows, generation and caches."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_lightning.cli.generate import Responder
from rlhf_lightning.data.rows.problems import RowError
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.encode import Encoder
from rlhf_lightning.data.tokens.templates import resolve
from rlhf_lightning.data.tokens.tokenize import tokenize
from rlhf_lightning.prompting import InContext, PromptTransform
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import END, qwen_like


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def text_of(transform: InContext, *turns: dict[str, str]) -> str:
    (turn,) = transform(list(turns))
    return str(turn["content"])


def test_golden_prompt():
    transform = InContext(examples=0, instruction="Be kind.")
    assert isinstance(transform, PromptTransform)
    expected = "# Instruction\n\nBe kind.\n\n# Query:\n```\nWhy?\n```\n\n# Answer:\n```\n"
    assert text_of(transform, user("Why?")) == expected


def test_earlier_turns_stand_in_the_same_sections():
    transform = InContext(examples=0, instruction="Be kind.")
    text = text_of(
        transform,
        {"role": "system", "content": "Rhyme."},
        user("Why?"),
        assistant("So."),
        user("And?"),
        assistant("I "),
    )
    head, body = text.split("Rhyme.\n\n")
    assert head == "# Instruction\n\nBe kind.\n\n"
    assert body == (
        "# Query:\n```\nWhy?\n```\n\n# Answer:\n```\nSo.\n```\n\n# Query:\n```\nAnd?\n```\n\n# Answer:\n```\nI "
    )
    with pytest.raises(RowError, match="alternating user and assistant turns"):
        transform([user("Why?"), user("And?")])


def test_examples_are_the_first_ones_and_vanilla_has_no_paragraph():
    starts = [InContext(examples=k).form.start for k in (0, 1, 3)]
    assert starts[1].startswith(starts[0])
    assert starts[2].startswith(starts[1])
    assert [start.count("# Query:\n```") for start in starts] == [0, 1, 3]
    vanilla = text_of(InContext(style="vanilla", examples=1), user("Why?"))
    assert vanilla.startswith("# Query:\n")
    assert vanilla.endswith("# Query:\nWhy?\n\n# Answer:\n")
    assert "```" not in vanilla
    assert "# Instruction" not in vanilla


def test_end_of_a_response():
    form = InContext().form
    written = {
        "Blue.\n```\n\n# Query:\n```\nNext": "Blue.",
        "Blue.\n```": "Blue.",
        "Blue.\n# User": "Blue.",
        "Run\n```\nls\n```\nthere.\n```\n# Query": "Run\n```\nls\n```\nthere.",  # code in a response stays
        "Cut off in the mid": "Cut off in the mid",
    }
    assert {text: text[: form.length(text)] for text in written} == written


def test_rows_generation_and_caches_have_one_prompt():
    tokenizer = qwen_like()
    spec = DataSpec(prompting=InContext(examples=1), max_length=None, cache=False)
    row = {"prompt": [user("Why?")], "chosen": [assistant("So.")], "rejected": [assistant("No.")]}
    made = tokenize(Rows(row), tokenizer, spec, "preference")
    assert made.report.kept == 1
    example = made[0]
    template = resolve(tokenizer, spec)
    responder = Responder(None, Encoder(tokenizer, spec, template), template, SimpleNamespace())  # type: ignore[arg-type]
    assert example.prompt == responder.prompt_ids([user("Why?")], spec.prompting)
    assert tokenizer.decode(example.prompt) == text_of(spec.prompting, user("Why?"))
    assert tokenizer.decode(example.responses[0]) == "So.\n```" + tokenizer.decode([END])
    cut = tokenize(Rows({"prompt": "Why?", "response": "So", "finish": "length"}), tokenizer, spec, "supervised")
    assert tokenizer.decode(cut[0].responses[0]) == "So"
    plain = tokenize(Rows({"prompt": "Why?", "chosen": "So.", "rejected": "No."}), tokenizer, spec, "preference")
    assert plain[0].prompt == example.prompt


def test_the_prompt_is_part_of_the_key(tmp_path: Path):
    """Without a transform the key does not change, so no data is tokenised again."""
    assert "prompting" not in DataSpec().content()
    assert DataSpec(prompting={}).digest() == DataSpec().digest()
    file = tmp_path / "examples.jsonl"
    digests = {DataSpec().digest()}
    for answer in ("one", "two"):
        file.write_text(json.dumps({"query": "q", "answer": answer}))
        digests.add(DataSpec(prompting=InContext(examples=1, file=str(file))).digest())
    digests.add(DataSpec(prompting=InContext(examples=0)).digest())
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 4}, "prompting.examples=4 must lie between 0 and 3,"),
        ({"file": "/nowhere.jsonl"}, "prompting.file=/nowhere.jsonl: there is no such file"),
        ({"style": "vanilla", "instruction": "x"}, "has no paragraph"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        InContext(**options)  # type: ignore[arg-type]


def test_several_turns_of_a_response_are_refused():
    spec = DataSpec(prompting=InContext(examples=0), cache=False, max_length=None)
    row = {"prompt": [user("Why?")], "response": [assistant("So."), user("And?"), assistant("Yes.")]}
    report = tokenize(Rows(row), qwen_like(), spec, "supervised").report
    assert report.kept == 0
    assert "data.spec.mask=response" in report.problems[0].message
