from __future__ import annotations

from collections import Counter

import pytest

from rlhf_lightning.data.rows.fields import Fields
from rlhf_lightning.data.rows.formats import FORMATS, convert, detect, unrecognised
from rlhf_lightning.data.rows.problems import ProblemKind, RowError
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import COLUMNS, DataSpec
from rlhf_lightning.data.spec import FORMATS as SPEC_FORMATS
from tests.helpers.rows import shared_file

AUTO = DataSpec()


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def test_the_spec_knows_every_format():
    assert ("auto", *sorted(FORMATS, key=SPEC_FORMATS.index)) == SPEC_FORMATS


#: row, its format, prompt, responses
LAYOUTS = {
    "text pair": ({"prompt": "p", "chosen": "c", "rejected": "r"}, "preference", "p", ("c", "r")),
    "conversational pair": (
        {"prompt": [user("p")], "chosen": [assistant("c")], "rejected": [assistant("r")]},
        "preference",
        [user("p")],
        ([assistant("c")], [assistant("r")]),
    ),
    "text prompt, message responses": (
        {"prompt": "p", "chosen": [assistant("c")], "rejected": assistant("r")},
        "preference",
        [user("p")],
        ([assistant("c")], [assistant("r")]),
    ),
    "messages as prompt of a pair": (
        {"messages": [system("s"), user("p")], "chosen": assistant("c"), "rejected": assistant("r")},
        "preference",
        [system("s"), user("p")],
        ([assistant("c")], [assistant("r")]),
    ),
    "alpaca pair": (
        {"instruction": "i", "input": "x", "chosen": "c", "rejected": "r"},
        "preference",
        [user("i\nx")],
        ([assistant("c")], [assistant("r")]),
    ),
    "whole conversations beside a copy of the prompt": (
        {
            "prompt": "a",
            "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
            "rejected": [user("a"), assistant("b"), user("c"), assistant("e")],
        },
        "implicit_prompt",
        [user("a"), assistant("b"), user("c")],
        ([assistant("d")], [assistant("e")]),
    ),
    "dialogue text": (
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\nd \n\nAssistant: yes ",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\nd \n\nAssistant: no",
        },
        "implicit_prompt",
        [user("a"), assistant("b"), user("c\nd")],
        ([assistant("yes")], [assistant("no")]),
    ),
    "dialogues that part early": (
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
            "rejected": "\n\nHuman: a\n\nAssistant: x",
        },
        "implicit_prompt",
        [user("a")],
        ([assistant("b"), user("c"), assistant("d")], [assistant("x")]),
    ),
    "equal dialogues keep a response each": (
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
        "implicit_prompt",
        [user("a")],
        ([assistant("b")], [assistant("b")]),
    ),
    "one dialogue goes on where the other ends": (
        {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")], "rejected": [user("a"), assistant("b")]},
        "implicit_prompt",
        [user("a")],
        ([assistant("b"), user("c"), assistant("d")], [assistant("b")]),
    ),
    "sharegpt pair": (
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "p"}],
            "chosen": {"from": "gpt", "value": "c"},
            "rejected": {"from": "gpt", "value": "r"},
        },
        "sharegpt_pairs",
        [system("s"), user("p")],
        ([assistant("c")], [assistant("r")]),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "sharegpt",
        [user("a")],
        ([assistant("b")],),
    ),
    "alpaca": (
        {"instruction": "i", "input": "", "output": "o", "system": "s", "history": [["q", "a"]]},
        "alpaca",
        [system("s"), user("q"), assistant("a"), user("i")],
        ([assistant("o")],),
    ),
    "messages, all assistant turns": (
        {"messages": [user("a"), assistant("b"), user("c"), assistant("d")], "prompt": "a", "label": True},
        "messages",
        [user("a")],
        ([assistant("b"), user("c"), assistant("d")],),
    ),
    "prompt and response": ({"prompt": "p", "response": "r"}, "prompt_response", "p", ("r",)),
    "prompt and completion": ({"prompt": "p", "completion": "r"}, "prompt_response", "p", ("r",)),
    "prompt and message completion": (
        {"prompt": [user("p")], "completion": [assistant("r")]},
        "prompt_response",
        [user("p")],
        ([assistant("r")],),
    ),
    "plain text": ({"text": "t"}, "text", "", ("t",)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognised_and_converted(name):
    row, layout, prompt, responses = LAYOUTS[name]
    record = convert(row, AUTO)
    assert (record.format, record.prompt, record.responses) == (layout, prompt, responses)
    assert convert(row, DataSpec(format=layout)) == record


def test_mask_response_takes_the_last_turn_of_a_demonstration_only():
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    record = convert({"messages": turns}, DataSpec(mask="response"))
    assert (record.prompt, record.responses) == (turns[:3], ([assistant("d")],))


def test_columns_are_renamed_and_may_be_nested():
    spec = DataSpec(columns={"prompt": "question", "chosen": "best.text", "rejected": "worst.text", "label": None})
    record = convert({"question": "q", "best": {"text": "b"}, "worst": {"text": "w"}}, spec)
    assert (record.prompt, record.responses) == ("q", ("b", "w"))


def test_a_mapped_column_may_have_a_dot_in_its_name():
    assert convert({"a.b": "t"}, DataSpec(columns={"text": "a.b"})).responses == ("t",)


@pytest.mark.parametrize(
    ("extra", "margin"),
    [
        ({}, None),
        ({"score_chosen": 3, "score_rejected": 1.5}, 1.5),
        ({"score_chosen": "3", "score_rejected": "5"}, -2.0),
        ({"margin": 0.25, "score_chosen": 9, "score_rejected": 1}, 0.25),
        ({"rating_a": 4, "rating_b": 1}, 3.0),
    ],
)
def test_margins(extra, margin):
    ratings = {"score_chosen": "rating_a", "score_rejected": "rating_b"} if "rating_a" in extra else {}
    record = convert({"prompt": "p", "chosen": "c", "rejected": "r", **extra}, DataSpec(columns=ratings))
    assert record.margin == margin


def test_system_messages():
    row = {"prompt": "p", "response": "r"}
    assert convert(row, DataSpec(system="s")).prompt == "p"
    assert convert(row, DataSpec(system="s"), conversation=True).prompt == [system("s"), user("p")]
    assert convert({**row, "system": "own"}, DataSpec(system="s")).prompt == [system("own"), user("p")]
    kept = convert({"prompt": [system("own"), user("p")], "response": "r"}, DataSpec(system="s"))
    assert kept.prompt == [system("own"), user("p")]


@pytest.mark.parametrize(
    ("label", "wanted", "kept"), [(True, True, True), (False, True, False), ("0", False, True), (None, None, True)]
)
def test_label_filter(label, wanted, kept):
    row = {"prompt": "p", "response": "r", "label": label}
    assert (convert(row, DataSpec(label=wanted)) is not None) is kept


def test_turns_are_normalised():
    message = {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    call = {"role": "model", "content": None, "tool_calls": [{"name": "f"}], "name": None}
    record = convert({"messages": [{"from": "human", "value": "q", "weight": None}, call, user("x"), message]}, AUTO)
    assert record.prompt == [user("q")]
    assert record.responses[0] == [
        {"tool_calls": [{"name": "f"}], "role": "assistant", "content": ""},
        user("x"),
        assistant("ab"),
    ]


#: row, spec, kind of problem, part of the message
BAD = {
    "nothing fits": ({"a": 1, "b": 2}, AUTO, ProblemKind.MISSING, "no format fits its columns: a, b"),
    "null counts as missing": (
        {"prompt": "p", "chosen": "c", "rejected": None},
        DataSpec(format="preference"),
        ProblemKind.MISSING,
        "no 'rejected' .columns: prompt, chosen, rejected",
    ),
    "mapped column is named": (
        {"prompt": "p"},
        DataSpec(format="prompt_response", columns={"response": "answer"}),
        ProblemKind.MISSING,
        "no 'answer'",
    ),
    "number as text": (
        {"prompt": "p", "response": 5},
        AUTO,
        ProblemKind.TYPE,
        "'response' must be text or a list of messages, not int '5'",
    ),
    "number as prompt text": ({"text": 5}, AUTO, ProblemKind.TYPE, "'text' must be text, not int '5'"),
    "unknown role": (
        {"messages": [{"role": "poet", "content": "x"}]},
        AUTO,
        ProblemKind.TYPE,
        "turn 1 of 'messages' has the unknown role 'poet'; supported: system",
    ),
    "no content": ({"messages": [{"role": "user"}]}, AUTO, ProblemKind.TYPE, "must have text as its content"),
    "image content": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        AUTO,
        ProblemKind.TYPE,
        "must have text as its content",
    ),
    "strings as turns": ({"messages": ["a"]}, AUTO, ProblemKind.TYPE, "turn 1 of 'messages' must be a message"),
    "no turns": ({"messages": []}, AUTO, ProblemKind.TYPE, "list of messages"),
    "ends with the user": ({"messages": [user("a")]}, AUTO, ProblemKind.MISSING, "ends with a user turn"),
    "dialogue ends with the user": (
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        AUTO,
        ProblemKind.TYPE,
        "'chosen' ends with a user turn",
    ),
    "no dialogue": ({"chosen": "a", "rejected": "b"}, AUTO, ProblemKind.TYPE, "no prompt column"),
    "response by the user": (
        {"prompt": "p", "chosen": [user("c")], "rejected": [assistant("r")]},
        DataSpec(format="preference"),
        ProblemKind.TYPE,
        "must start and end with an assistant turn",
    ),
    "score as text": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": "good", "score_rejected": 1},
        AUTO,
        ProblemKind.TYPE,
        "'score_chosen' must be a number, not str 'good'",
    ),
    "infinite score": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "margin": float("inf")},
        AUTO,
        ProblemKind.TYPE,
        "finite",
    ),
    "one score": (
        {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 1},
        AUTO,
        ProblemKind.MISSING,
        "no 'score_rejected'",
    ),
    "label is no flag": ({"text": "t", "label": "maybe"}, DataSpec(label=True), ProblemKind.TYPE, "true or false"),
    "label is missing": ({"text": "t"}, DataSpec(label=True), ProblemKind.MISSING, "no 'label'"),
    "history of three": (
        {"instruction": "i", "output": "o", "history": [["a", "b", "c"]]},
        AUTO,
        ProblemKind.TYPE,
        "'history' must be pairs of texts",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_of_bad_rows_state_the_problem(name):
    row, spec, kind, message = BAD[name]
    with pytest.raises(RowError, match=message) as raised:
        convert(row, spec)
    assert raised.value.kind is kind


def test_the_error_of_a_row_that_fits_no_format_refers_to_the_format_of_the_others():
    with pytest.raises(RowError, match="no 'rejected'"):
        convert({"prompt": "p", "chosen": "c"}, AUTO, expected="preference")


def test_the_error_for_unknown_data_lists_what_each_format_needs():
    message = str(unrecognised(["question", "answer"], "prompt"))
    assert "no format fits the columns question, answer" in message
    assert all(f"{name}: {form.needs}" in message for name, form in FORMATS.items())
    assert "data.spec.columns.prompt=question" in message


def test_spec_rejects_unknown_values_with_the_closest_one():
    for options, message in [
        ({"format": "alpacca"}, "data.spec.format='alpacca' is not one of .*Did you mean 'alpaca'"),
        ({"too_long": "cut"}, "data.spec.too_long='cut' is not one of"),
        ({"columns": {"promt": "x"}}, "a key of data.spec.columns='promt'.*Did you mean 'prompt'"),
        ({"max_length": 1}, "data.spec.max_length=1 must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            DataSpec(**options)


def test_the_spec_digest_ignores_what_does_not_change_tokens():
    base = DataSpec().digest()
    assert DataSpec(on_bad_row="exclude", cache=False, cache_dir="x", columns={"prompt": None}).digest() == base
    changed = [
        DataSpec(format="text"),
        DataSpec(columns={"prompt": "q"}),
        DataSpec(system="s"),
        DataSpec(label=True),
        DataSpec(template="plain"),
        DataSpec(template_arguments={"a": 1}),
        DataSpec(mask="response"),
        DataSpec(boundary="prefix"),
        DataSpec(bos=False),
        DataSpec(prompt_start="sentence"),
        DataSpec(prompt_end="sentence"),
        DataSpec(prompt_end="line"),
        DataSpec(max_length=5),
        DataSpec(max_prompt_length=5),
        DataSpec(max_response_length=5),
        DataSpec(too_long="keep_end"),
    ]
    assert len({base, *(spec.digest() for spec in changed)}) == len(changed) + 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_column_can_be_mapped(name):
    row, *_ = LAYOUTS[name]
    renamed = {f"their {column}" if column in COLUMNS else column: value for column, value in row.items()}
    spec = DataSpec(columns={column: f"their {column}" for column in row if column in COLUMNS})
    assert convert(renamed, spec) == convert(row, AUTO)


def test_a_row_without_columns_is_no_format():
    assert detect(Fields({}, {})) is None


@pytest.mark.parametrize(
    ("name", "columns", "layout", "rows", "bad"),
    [
        ("alpaca_instructions_400.json", {}, "alpaca", 400, 0),
        ("gsm8k_train_500.jsonl", {"prompt": "question", "response": "answer"}, "prompt_response", 500, 0),
        ("hh_dialogues_300.jsonl", {}, "implicit_prompt", 300, 0),
        ("messages_unpaired_200.json", {}, "messages", 200, 0),
        ("sharegpt_pairs_200.json", {}, "sharegpt_pairs", 200, 0),
    ],
)
def test_real_files(name, columns, layout, rows, bad):
    spec = DataSpec(columns=columns)
    formats = Counter(convert(row.values, spec).format for row in Files(shared_file(name)).rows())
    assert formats == {layout: rows - bad}
