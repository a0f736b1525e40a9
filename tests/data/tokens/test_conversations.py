from __future__ import annotations

import json
import re

import pytest

from rlhf_lightning.data.rows.problems import DataError, ProblemKind
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
#: Drops the thought of every response, as DeepSeek-R1's first template did.
NO_THOUGHT = tokenizers.CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
#: An empty thought in the generation prompt and before the last response alone, as Qwen3's with enable_thinking=false.
EMPTY_THOUGHT = (
    "{% for m in messages %}{% set last = m['role'] == 'assistant' and loop.last %}"
    "{% set thought = '<think>\n\n</think>\n\n' if last else '' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + thought + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
#: Shows tools, calls and reasoning; a turn of another role than these four is nothing to it.
AGENT = (
    "{% if tools %}{{ '[tools]' + tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] in ('system', 'user', 'assistant', 'tool') %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['reasoning_content'] %}{{ '<think>' + m['reasoning_content'] + '</think>' }}{% endif %}{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ '<call>' + c['function']['name'] + c['function']['arguments'] | tojson }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def user(content, **fields):
    return {"role": "user", "content": content, **fields}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def made(*rows, kind="supervised", template=tokenizers.CHATML, **options):
    spec = DataSpec(cache=False, on_bad_row="exclude", max_length=None, **options)
    return tokenize(Rows(*rows), tokenizers.qwen_like(template), spec, kind)


def texts(result, group=0):
    """Prompt, and each response with its scored parts in brackets."""
    tokenizer = tokenizers.qwen_like()
    example = result[group]
    shown = []
    for slot, ids in enumerate(example.responses):
        mask = example.loss_mask[slot] if example.loss_mask else [True] * len(ids)
        text, before = "", False
        for token, flag in zip(ids, mask, strict=True):
            text += ("[" if flag and not before else "]" if before and not flag else "") + tokenizer.decode([token])
            before = flag
        shown.append(text + "]" * before)
    return tokenizer.decode(example.prompt), shown


def problem(row, **options):
    """Kind and words of the only problem of a row."""
    (only,) = made(row, **options).report.problems
    return only.kind, only.message


# What a template does not show


@pytest.mark.parametrize(
    ("row", "template", "kind", "words"),
    [
        (
            {"messages": [user("q"), assistant("<think>\nwhy not\n</think>\n\nyes")]},
            NO_THOUGHT,
            "supervised",
            r"does not show turn 2 \(assistant\): 'why not'",
        ),
        (
            {"messages": [user("q"), assistant("yes", reasoning_content="why not")]},
            tokenizers.CHATML,
            "supervised",
            r"does not show 'reasoning_content' of turn 2 \(assistant\): 'why not'",
        ),
        (  # the first response has a thought, the last one none
            {"messages": [user("q"), assistant("<think>why</think>yes"), user("r"), assistant("no")]},
            NO_THOUGHT,
            "supervised",
            r"does not show turn 2 \(assistant\): 'why'",
        ),
        (
            {"prompt": [user("q")], "chosen": [assistant("", tool_calls=[CALL])], "rejected": [assistant("no")]},
            tokenizers.CHATML,
            "preference",
            r"does not show 'tool_calls' of turn 2 \(assistant\): 'name weather'",
        ),
        (
            {"messages": [user("q"), assistant(None, function_call={"name": "f", "arguments": "{}"})]},
            AGENT,
            "supervised",
            r"does not show 'function_call' of turn 2",
        ),
        (
            {"messages": [user("q"), assistant("a", tool_calls=[CALL])]},
            AGENT.replace("c['function']['arguments'] | tojson", "''"),
            "supervised",
            r"does not show 'tool_calls' of turn 2 \(assistant\): .arguments",
        ),
        (
            {"messages": [{"role": "developer", "content": "Be kind."}, user("q"), assistant("a")]},
            AGENT,
            "supervised",
            r"does not show turn 1 \(developer\): 'Be kind.'",
        ),
        (  # "7" stands in the question too
            {"messages": [user("7?"), assistant("a"), {"role": "tool", "content": "7"}, assistant("7")]},
            AGENT.replace(", 'tool')", ")"),
            "supervised",
            r"does not show turn 3 \(tool\): '7'",
        ),
        (
            {"messages": [user("q"), assistant("a")], "tools": [TOOL]},
            tokenizers.CHATML,
            "supervised",
            r"does not show the row's tools \(weather\).*data\.spec\.columns\.tools=-",
        ),
        (
            {"prompt": "q", "response": "a", "tools": json.dumps([TOOL])},
            AGENT,
            "supervised",
            "plain text does not show",
        ),
    ],
)
def test_what_a_template_does_not_show_is_a_problem_of_the_row(row, template, kind, words):
    (only,) = made(row, template=template, kind=kind).report.problems
    assert only.kind is ProblemKind.TEMPLATE
    assert re.search(words, only.message), only.message


def test_tools_calls_and_reasoning_are_rendered_where_the_template_can():
    turns = [
        user("q"),
        assistant(None, tool_calls=[CALL], reasoning_content="look it up"),
        {"role": "tool", "content": "7"},
        assistant("seven"),
    ]
    for tools in ([TOOL], json.dumps([TOOL])):  # the column may hold JSON text
        result = made({"messages": turns, "tools": tools}, template=AGENT)
        assert not result.report.problems
        prompt, (response,) = texts(result)
        assert prompt.startswith('[tools][{"type": "function", "function": {"name": "weather"')
        assert response.startswith('[<think>look it up</think><call>weather{"city": "Rome"}<|im_end|>]')
    without = made({"messages": turns, "tools": [TOOL]}, columns={"tools": "-"}, template=AGENT)
    assert texts(without)[0] == ASKED.format("q")


def test_thoughts_that_leave_the_view_are_counted():
    """Reasoning models are trained without the thoughts of earlier responses: templates leave them out on purpose."""
    thought = "<think>why</think> b"
    prompt = [user("a"), assistant(thought), user("c")]
    rows = {"prompt": prompt, "chosen": [assistant("d")], "rejected": [assistant("e")]}
    report = made(rows, kind="preference", template=tokenizers.THINKING).report
    assert (report.kept, report.hidden_reasoning) == (1, 1)
    assert any("the reasoning of 1 assistant turns before the last one is not shown" in note for note in report.notes)


def test_fields_that_a_template_does_not_read_are_noted():
    report = made({"messages": [user("a", name="Ann"), assistant("b")]}).report
    assert report.notes[-1] == "turns have fields that the template does not show: name"
    mentioned = tokenizers.CHATML.replace("m['role'] +", "m['role'] + (m['name'] or '') +")
    assert not made({"messages": [user("a", name="Ann"), assistant("b")]}, template=mentioned).report.notes


# Turns that are not scored


@pytest.mark.parametrize(
    "flag", [{"weight": 0}, {"train": False}, {"loss": 0.0}, {"masked": True}, {"training": "false"}]
)
def test_a_turn_that_is_marked_is_shown_and_not_scored(flag):
    result = made({"messages": [user("a"), assistant("b", **flag), user("c"), assistant("d")]})
    assert texts(result) == (ASKED.format("a"), [f"b<|im_end|>\n{ASKED.format('c')}[d<|im_end|>]"])
    pair = {"prompt": "a", "chosen": [assistant("b", **flag), user("c"), assistant("d")], "rejected": [assistant("e")]}
    assert texts(made(pair, kind="preference"))[1] == [
        f"b<|im_end|>\n{ASKED.format('c')}[d<|im_end|>]",
        "[e<|im_end|>]",
    ]


def test_what_follows_the_last_scored_turn_is_left_out():
    turns = [user("a"), assistant("b", weight=1), user("c"), assistant("d", weight=0)]
    assert texts(made({"messages": turns})) == (ASKED.format("a"), ["[b<|im_end|>]"])
    assert problem({"messages": turns}, mask="response")[0] is ProblemKind.UNSCORED
    assert problem({"messages": [user("a"), assistant("b", weight=0)]})[0] is ProblemKind.UNSCORED
    pair = {"prompt": "a", "chosen": [assistant("b", weight=0)], "rejected": [assistant("c")]}
    assert problem(pair, kind="preference") == (
        ProblemKind.UNSCORED,
        "the last turn of chosen is marked as not to be scored",
    )


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (assistant("b", weight=0.5), "'weight' of turn 2 of 'messages' must be 0 or 1"),
        (assistant("b", train=True, masked=True), "masked and train of turn 2 of 'messages' contradict each other"),
        (
            assistant("b", train_detail=[{"begin_offset": 0}]),
            "'train_detail' of turn 2 of 'messages' asks to",
        ),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(turn, words):
    kind, message = problem({"messages": [user("a"), turn]})
    assert kind is ProblemKind.TYPE
    assert message.startswith(words)
    kind, message = problem({"messages": [user("a", train=True), assistant("b")]})
    assert "asks to score a turn of role user" in message


def test_an_empty_thought_in_the_generation_prompt_leaves_the_last_turn_scored():
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    result = made({"messages": turns}, template=EMPTY_THOUGHT)
    history = "<|im_start|>assistant\nb<|im_end|>\n"
    opened = ASKED.format("c") + "<think>\n\n</think>\n\n"
    assert texts(result) == ("<|im_start|>user\na<|im_end|>\n", [f"{history}{opened}[d<|im_end|>]"])
    assert result.report.unscored_turns == 1
    assert "1 assistant turns are not scored" in result.report.notes[0]
    alone = made({"messages": turns[:2]}, template=EMPTY_THOUGHT)  # one turn is what generation gives
    assert texts(alone) == (ASKED.format("a") + "<think>\n\n</think>\n\n", ["[b<|im_end|>]"])
    pair = {"prompt": turns[:1], "chosen": turns[1:], "rejected": [assistant("e")]}
    assert texts(made(pair, kind="preference", template=EMPTY_THOUGHT))[1] == [
        f"{history}{opened}[d<|im_end|>]",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n[e<|im_end|>]",
    ]


# Prompts that end with the beginning of a response


def test_the_beginning_of_a_response_in_the_prompt_is_continued():
    prompt = [user("a"), assistant("It is")]
    row = {"prompt": prompt, "chosen": [assistant(" b")], "rejected": " c"}
    opened = ASKED.format("a") + "It is"
    assert texts(made(row, kind="preference")) == (opened, ["[ b<|im_end|>]", "[ c<|im_end|>]"])
    assert texts(made({"prompt": prompt, "response": " b"})) == (opened, ["[ b<|im_end|>]"])
    ranked = {"prompt": prompt, "responses": [" b", " c"], "scores": [1, 2]}
    assert texts(made(ranked, kind="ranked"))[0] == opened
    steps = {"prompt": prompt, "steps": [" b"], "labels": [True]}
    assert texts(made(steps, kind="steps"))[0] == opened
    assert texts(made({"prompt": prompt}, kind="prompt"))[0] == opened  # the policy continues it
    # a template that trims would cut the blank between the two, if they were two turns
    trimmed = made(row, kind="preference", template=tokenizers.THINKING)
    assert texts(trimmed) == (opened, ["[ b<|im_end|>]", "[ c<|im_end|>]"])


def test_two_responses_in_a_row_of_whole_dialogues_stay_two():
    dialogue = [user("a"), assistant("b")]
    row = {"chosen": [*dialogue, assistant("c")], "rejected": [*dialogue, assistant("d")]}
    prompt, responses = texts(made(row, kind="preference"))
    assert prompt == ASKED.format("a") + "b<|im_end|>\n<|im_start|>assistant\n"
    assert responses == ["[c<|im_end|>]", "[d<|im_end|>]"]


def test_what_cannot_be_continued_is_a_problem():
    called = {"prompt": [user("a"), assistant("", tool_calls=[CALL])], "response": "b"}
    assert problem(called, template=AGENT) == (
        ProblemKind.TEMPLATE,
        "the prompt ends with a tool call, which a response cannot continue",
    )
    leading = {"prompt": [user("a"), assistant(" It is")], "response": " b"}
    assert problem(leading, template=tokenizers.THINKING)[0] is ProblemKind.TEMPLATE  # it trims the beginning


# Empty turns, and messages as text


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        (
            {"messages": [user("a"), assistant(""), user("b"), assistant("c")]},
            "supervised",
            "turn 1 (assistant) of response",
        ),
        (
            {"messages": [user("a"), assistant("b"), user(" "), assistant("c")]},
            "supervised",
            "turn 2 (user) of response",
        ),
        (
            {"prompt": [user("a"), assistant("\n"), user("b")], "response": "c"},
            "supervised",
            "turn 2 (assistant) of the prompt",
        ),
        (
            {"prompt": "a", "chosen": [assistant("b"), user(""), assistant("c")], "rejected": "d"},
            "preference",
            "turn 2 (user) of chosen",
        ),
    ],
)
def test_a_turn_that_says_nothing_is_a_problem(row, kind, words):
    assert problem(row, kind=kind)[1] == f"{words} is empty"


def test_messages_as_json_text_are_messages():
    row = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    right = texts(made(row, kind="preference"))
    assert texts(made({name: json.dumps(value) for name, value in row.items()}, kind="preference")) == right
    turns = [user("a"), assistant("b")]
    right = texts(made({"messages": turns}))
    assert texts(made({"messages": json.dumps(turns)})) == right
    assert texts(made({"messages": [json.dumps(turn) for turn in turns]})) == right
    assert texts(made({"prompt": json.dumps(turns[:1]), "response": "b"})) == right
    ranked = {"prompt": "a", "responses": [json.dumps([assistant(text)]) for text in "bc"], "scores": [1, 2]}
    assert texts(made(ranked, kind="ranked")) == (ASKED.format("a"), ["[c<|im_end|>]", "[b<|im_end|>]"])


def test_text_that_looks_like_messages_and_is_none():
    for text in ("[{'role': 'user', 'content': 'a'}]", '[{"role": "user", "content": "a'):
        kind, message = problem({"prompt": text, "response": "b"})
        assert (kind, message[:28]) == (ProblemKind.TYPE, "'prompt' holds messages as t")
    assert "or messages with data.spec.columns" in problem({"instruction": json.dumps([user("a")]), "output": "b"})[1]
    for text in ('{"value": 3}', "[1, 2]", '{"role": "admin"}', "{'role': x}"):  # JSON and code are text
        assert texts(made({"prompt": text, "response": "b"}))[0] == text


# Columns


def test_a_misspelt_column_is_named_with_the_closest_one():
    row = {"question": "a", "better": "b", "worse": "c", "score": 1.0}
    right = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    for name, column in (("prompt", "queston"), ("chosen", "bettr"), ("rejected", "wrse")):
        with pytest.raises(
            DataError, match=rf"columns\.{name}={column}: no such column \(did you mean '{right[name]}'"
        ):
            made(row, kind="preference", columns={**right, name: column})
    with pytest.raises(
        DataError, match=r"columns\.margin=scroe: no such column \(did you mean 'score'\?\)\. No row of rows"
    ):
        made(row, kind="preference", columns={**right, "margin": "scroe"})
    inside = {"question": "a", "answers": [{"said": "b", "stars": 1}, {"said": "c", "stars": 2}]}
    columns = {"prompt": "question", "responses": "answers", "response": "said", "score": "stars"}
    assert made(inside, kind="ranked", columns=columns).report.kept == 1  # the objects of a list have columns too
    # a later row alone lacks it: then it is a problem of that row, by the column's name
    report = made(row, {"question": "d", "worse": "e"}, kind="preference", columns=right).report
    assert report.problems[0].message.startswith("data.spec.columns.chosen=better: no such column")


@pytest.mark.parametrize(
    ("row", "kind", "column"),
    [
        ({"prompt": "a", "responses": ["b", 5], "scores": [1, 2]}, "ranked", "'responses[1]'"),
        ({"prompt": "a", "completions": ["b", {"role": "poet"}], "rewards": [1, 2]}, "ranked", "'completions[1]'"),
        ({"messages": [user("a"), {"role": "assistant"}]}, "supervised", "turn 2 of 'messages'"),
        ({"prompt": "a", "response": "b", "attributes": {"x": 10**400}}, "attributes", "'x'"),
        ({"prompt": "a", "response": "b", "score": 1e39}, "ranked", "'score'"),
        ({"prompt": "a", "response": None}, "supervised", "response (null)"),
        (
            {"messages": [{"role": "system", "content": "x"}, user("a"), assistant("b")], "system": "y"},
            "supervised",
            "'system'",
        ),
    ],
)
def test_messages_name_the_column_that_is_wrong(row, kind, column):
    good = {
        "ranked": {"prompt": "p", "responses": ["q"], "scores": [1]},
        "supervised": {"messages": [user("a"), assistant("b")]},
        "attributes": {"prompt": "p", "response": "r", "attributes": {"x": 1}},
    }[kind]
    (only,) = made(good, row, kind=kind).report.problems
    assert column in only.message


def test_broken_text_is_a_problem_that_names_its_column():
    good, bad = {"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "half \ud83d"}
    result = made(good, bad, kind="prompt")
    assert [example.row for example in result.examples] == ["rows:1"]
    assert (
        result.report.problems[0].message
        == "'answer' holds '\\ud83d', half of a surrogate pair, so it is not valid Unicode"
    )
    for row in ({"prompt": "c", "response": "\udfff"}, {"prompt": [user("\ud800")], "response": "d"}):
        assert "half of a surrogate pair" in problem(row)[1]
    assert not made({"prompt": "c", "response": "d", "other": "\ud800"}).report.problems  # nobody looks at that column
