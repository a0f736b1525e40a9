"""Each type of grader by numbers worked out elsewhere, and its spec by its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.rewards.graders import Context, Limits, Means, make_grader
from rlhf_lightning.rewards.graders.similarity import bleu, fuzzy_match, gleu, rouge


class Oracle:
    """Answers with what it is told, and keeps what it was asked."""

    def __init__(self, *answers: str | None) -> None:
        self.answers, self.asked, self.options = list(answers), [], {}

    def ask_each(self, conversations: Any, **options: Any) -> list[str | None]:
        self.asked += conversations
        self.options = options
        return [self.answers.pop(0) for _ in conversations]


def grader(spec: Any, *answers: str | None) -> Any:
    return make_grader(spec, "reward.spec", Means(lambda: Oracle(*answers), Limits()))


def context(text: str, **item: Any) -> Context:
    return Context({"output_text": text, "output_json": None, "finish_reason": "stop"}, item)


CHECK = {"type": "string_check", "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}"}


@pytest.mark.parametrize(
    ("operation", "text", "score"),
    [
        ("eq", "Four", 1),
        ("eq", "four", 0),
        ("eq", "Four ", 0),
        ("ne", "four", 1),
        ("ne", "Four", 0),
        ("like", "it is Four.", 1),
        ("like", "it is four.", 0),
        ("like", "Fou", 0),
        ("ilike", "it is FOUR.", 1),
        ("ilike", "five", 0),
    ],
)
def test_string_check(operation: str, text: str, score: float):
    [grade] = grader({**CHECK, "operation": operation})([context(text, answer="Four")])
    assert (grade.score, grade.failure) == (score, None)


# sacrebleu 2.6 sentence_bleu(tokenize="none", use_effective_order=True) / 100 and nltk 3.9 sentence_gleu.
SENTENCES = [
    ("the cat sat on the mat", "a cat is on the mat", 0.324667915, 0.388888889),
    ("the cat is on the mat", "a cat is on the mat", 0.759835686, 0.777777778),
    ("yes", "yes", 1.0, 1.0),
    ("the", "the cat", 0.367879441, 0.333333333),
    ("a b c d e", "a b c x e f g", 0.286419046, 0.318181818),
    ("no", "yes", 0.0, 0.0),
    ("", "yes", 0.0, 0.0),
]


@pytest.mark.parametrize(("text", "reference", "wanted_bleu", "wanted_gleu"), SENTENCES)
def test_runs_of_words(text: str, reference: str, wanted_bleu: float, wanted_gleu: float):
    assert bleu(text, reference) == pytest.approx(wanted_bleu, abs=1e-8)
    assert gleu(text, reference) == pytest.approx(wanted_gleu, abs=1e-8)


def test_other_similarities():
    """By hand: 6 of 7 + 7 characters in order; 4 of 6 words, 2 of 5 pairs, a common subsequence of 4 words."""
    pytest.importorskip("rapidfuzz")
    assert fuzzy_match("kitten.", "kitten!") == pytest.approx(2 * 6 / 14)
    pair = ("The cat sat on the mat!", "a cat is on the mat")
    assert rouge(*pair, key="rouge1") == pytest.approx(4 / 6)
    assert rouge(*pair, key="rouge2") == pytest.approx(2 / 5)
    assert rouge(*pair, key="rougeL") == pytest.approx(4 / 6)


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", *(f"rouge_{n}" for n in range(1, 6)), "rouge_l"])
def test_text_similarity(metric: str):
    spec = {**CHECK, "type": "text_similarity", "evaluation_metric": metric, "pass_threshold": 0.8}
    grades = grader(spec)([context(text, answer="a b c d e f") for text in ("a b c d e f", "u v w x y z")])
    assert grades[0].score == pytest.approx(1.0)
    assert grades[1].score < 0.6
    assert grader(spec).pass_threshold == 0.8


def test_python(tmp_path: Path):
    source = "def grade(sample, item):\n    return item['points'] / 10 if sample['output_text'] else 1 / 0\n"
    (tmp_path / "grader.py").write_text(source)
    for where in ({"source": source, "image_tag": "2025-05-08"}, {"path": str(tmp_path / "grader.py")}):
        python = grader({"type": "python", **where})
        good, bad = python([context("x", points=7), context("", points=7)])
        python.close()
        assert (good.score, good.failure) == (0.7, None)
        assert (bad.score, bad.failure) == (0.0, "error")
        assert "ZeroDivisionError" in bad.message


MODEL = {
    "type": "score_model",
    "model": "some-model",
    "range": [1, 7],
    "sampling_params": {"temperature": 0.5, "seed": 3, "max_completions_tokens": 64},
    "input": [
        {"role": "system", "content": "Be fair."},
        {"role": "user", "content": {"type": "input_text", "text": "Rate {{ sample.output_text }} for {{item.q}}"}},
    ],
}


def test_score_model():
    oracle = Oracle('Good. {"score": 5}', "I would say 6/7", "excellent", '{"score": 9}', None)
    scorer = make_grader(MODEL, "reward.spec", Means(lambda: oracle, Limits()))
    grades = scorer([context(text, q="why") for text in "abcde"] + [context("f")])
    assert [grade.score for grade in grades] == [5, 6, 0, 0, 0, 0]
    assert [grade.failure for grade in grades] == [None, None, "parse", "parse", "error", "error"]
    assert "item.q is not there" in grades[-1].message
    assert len(oracle.asked) == 5
    assert oracle.asked[1][0] == {"role": "system", "content": "Be fair."}
    assert oracle.asked[1][1]["content"].startswith("Rate b for why\n\n")
    assert '{"score": x}, where x is a number from 1 to 7' in oracle.asked[1][1]["content"]
    assert oracle.options == {"temperature": 0.5, "seed": 3, "max_tokens": 64}


MULTI: dict[str, Any] = {
    "type": "multi",
    "graders": {
        "exact": {**CHECK, "operation": "eq"},
        "near": {
            "type": "multi",
            "graders": {"half": {**CHECK, "operation": "like"}, "unused": {**CHECK, "operation": "ne"}},
            "calculate_output": "half / 2",
        },
    },
    "calculate_output": "max(exact, near)",
}


def test_multi():
    multi = grader(MULTI)
    grades = multi([context("Four", answer="Four"), context("is Four", answer="Four"), context("five", answer="Four")])
    assert [grade.score for grade in grades] == [1.0, 0.5, 0.0]
    assert list(multi.parts) == ["exact", "near", "near/half", "near/unused"]
    assert {path: part.score for path, part in grades[1].parts.items()} == {
        "exact": 0.0,
        "near": 0.5,
        "near/half": 1.0,
        "near/unused": 1.0,
    }


def test_a_failure_within_is_zero_there():
    [grade] = grader(MULTI)([context("x")])
    assert (grade.score, grade.failure) == (0.0, None)
    assert {part.failure for path, part in grade.parts.items() if path != "near"} == {"error"}


def test_a_formula_without_a_value_is_a_failure():
    spec = {"type": "multi", "graders": {"exact": {**CHECK, "operation": "eq"}}, "calculate_output": "1 / exact"}
    right, wrong = grader(spec)([context("a", answer="a"), context("b", answer="a")])
    assert (right.score, right.failure) == (1.0, None)
    assert (wrong.score, wrong.failure) == (0.0, "error")


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {**CHECK, "operation": "eq"}
    for _ in range(depth):
        inner = {"type": "multi", "graders": {"a": inner}, "calculate_output": "a"}
    return inner


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (base | changes).items() if value != "-"}


EXACT = {**CHECK, "operation": "eq"}
SIMILAR = {**CHECK, "type": "text_similarity", "evaluation_metric": "bleu"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text", r"reward.spec.type=None is no type"),
        ({}, "is no type of grader. There are string_check"),
        ({"type": "string_chek"}, "Did you mean string_check"),
        (changed(EXACT, operation="equals"), r"reward.spec.operation='equals' is not one of eq, ne, like, ilike"),
        (changed(EXACT, operation="-"), "reward.spec.operation must be a text"),
        (changed(EXACT, reference=4), "reward.spec.reference must be a text, not 4"),
        (
            changed(EXACT, refrence="x"),
            "reward.spec.refrence: there is no such field; string_check has input, reference",
        ),
        (changed(EXACT, input="{{ output }}"), "reward.spec.input"),
        (changed(EXACT, pass_threshold="high"), "reward.spec.pass_threshold='high' must be a number"),
        (changed(SIMILAR, evaluation_metric="meteor"), "'meteor' is not available: it needs WordNet"),
        (changed(SIMILAR, evaluation_metric="cosine"), "needs an embedding model"),
        (changed(SIMILAR, evaluation_metric="rouge"), "is not one of fuzzy_match, bleu"),
        ({"type": "python"}, "needs either source"),
        ({"type": "python", "source": "x = 1", "path": "y"}, "needs either source"),
        ({"type": "python", "source": "x = 1"}, "reward.spec.source has no function grade"),
        ({"type": "python", "path": "no/such.py"}, "reward.spec.path='no/such.py'"),
        (changed(MODEL, input=[]), "reward.spec.input must be a list of messages"),
        (changed(MODEL, input=["hello"]), r"reward.spec.input\[0\] must be a message"),
        (changed(MODEL, input=[{"role": "user", "content": 3}]), r"input\[0\].content must be a text"),
        (changed(MODEL, range=[1, 1]), r"reward.spec.range=\[1, 1\] must be \[lowest, highest\]"),
        (changed(MODEL, sampling_params={"top_p": 0.5}), "reward.spec.sampling_params.top_p is not used here"),
        (changed(MULTI, graders={}), "reward.spec.graders must be a mapping"),
        (changed(MULTI, graders={"a-b": EXACT}), "'a-b' is no name"),
        (changed(MULTI, graders={"lambda": EXACT}), "'lambda' is no name"),
        (changed(MULTI, calculate_output="exact + exakt"), "there is no grader 'exakt'; there are exact, near"),
        (changed(MULTI, calculate_output="-"), "reward.spec.calculate_output must be a text"),
        (
            changed(MULTI, graders={"a": changed(EXACT, operation="x")}, calculate_output="a"),
            "spec.graders.a.operation",
        ),
        (nested(5), "nested more than 4 deep"),
    ],
)
def test_specs_that_are_refused(spec: Any, message: str):
    with pytest.raises(ValueError, match=message):
        grader(spec)


@pytest.mark.parametrize("spec", [EXACT, SIMILAR, nested(2)])
def test_columns_are_checked_wherever_they_are_named(spec: Any):
    with pytest.raises(ValueError, match=r"no column 'answer'. Did you mean item.answers\?"):
        grader(spec).check(["answers", "prompt"])
    grader(spec).check(["answer"])


def test_columns_of_questions():
    with pytest.raises(ValueError, match=r"input\[1\].content: the data has no column 'q'"):
        grader(MODEL).check(["answer"])


def test_every_type_has_a_callable_registry() -> None:
    from rlhf_lightning.rewards.graders import GRADERS

    makers: dict[str, Callable[..., Any]] = dict(GRADERS)
    assert sorted(makers) == ["multi", "python", "score_model", "string_check", "text_similarity"]
