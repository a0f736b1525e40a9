"""Fields in a grader's texts: what is there is filled in, what is not is refused before the run or counted in it."""

from __future__ import annotations

import pytest

from rlhf_lightning.rewards.graders.templates import Context, FieldError, Template

CONTEXT = Context(
    {"output_text": "4", "output_json": {"steps": [{"n": 1}, {"n": 2}]}, "finish_reason": "stop"},
    {"answer": "four", "number": 4, "parts": ["a", "b"], "deep": {"x": [0, {"y": "z"}]}, "nothing": None},
    row="rows.jsonl:3",
)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{{ item.answer }}", "four"),
        ("{{item.answer}}!{{item.number}}", "four!4"),
        ("{{ sample.output_text }}", "4"),
        ("{{ sample.output_json.steps[1].n }}", "2"),
        ("{{ item.parts[0] }}", "a"),
        ("{{ item.parts }}", '["a", "b"]'),
        ("{{ item.deep.x[1].y }}", "z"),
        ("{ item.answer }", "{ item.answer }"),
    ],
)
def test_filled(text: str, filled: str):
    assert Template(text, "here").render(CONTEXT) == filled


def test_what_is_filled_in_is_not_read_again():
    context = Context({"output_text": "{{ item.answer }} {{ 1 / 0 }}"}, {"answer": "secret"})
    assert Template("<{{ sample.output_text }}>", "here").render(context) == "<{{ item.answer }} {{ 1 / 0 }}>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ answer }}", "is no field"),
        ("{{ item }}", "is no field"),
        ("{{ item.a | upper }}", "is no field"),
        ("{{ item.__class__() }}", "is no field"),
        ("{{ item['a'] }}", "is no field"),
        ("{{ item.a[-1] }}", "is no field"),
        ("{{ 7 * 7 }}", "is no field"),
        ("{{ }}", "is no field"),
        ("{{ sample.output }}", "a sample has no field 'output'; it has output_text, output_json"),
        ("{{ item.a", "without their partner"),
        ("item.a }}", "without their partner"),
        ("{{ item.a }} {{", "without their partner"),
    ],
)
def test_texts_that_are_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message) as error:
        Template(text, "reward.spec.input")
    assert "reward.spec.input" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ item.missing }}", "item.missing is not there"),
        ("{{ item.answer.more }}", "item.answer.more is not there"),
        ("{{ item.answer[0] }}", r"item.answer\[0\] is not there"),
        ("{{ item.parts[2] }}", r"item.parts\[2\] is not there"),
        ("{{ item.parts.append }}", "item.parts.append is not there"),
        ("{{ item.nothing }}", "item.nothing is null"),
        ("{{ item.deep.keys }}", "item.deep.keys is not there"),
    ],
)
def test_fields_that_are_not_there(text: str, message: str):
    with pytest.raises(FieldError, match=message) as error:
        Template(text, "here").render(CONTEXT)
    assert "rows.jsonl:3" in str(error.value)


def test_columns_are_held_against_the_data():
    template = Template("{{ item.anwser.text }} {{ item.question }} {{ sample.output_text }}", "reward.spec.reference")
    assert template.columns == ["anwser", "question"]
    with pytest.raises(
        ValueError, match=r"reward.spec.reference: .*'anwser'. Did you mean item.answer\? It has answer"
    ):
        template.check(["answer", "question"])
    template.check(["anwser", "question", "more"])
