"""Answers, formats, mathematics, tasks, sentiment: what counts as right."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from rlhf_lightning.rewards import (
    ExactMatch,
    FormatReward,
    LexiconSentiment,
    MathReward,
    ReasoningGym,
    RegexMatch,
    Reward,
)
from rlhf_lightning.rewards.answers import EXTRACTORS, Extractor, accepted, answer_tag, boxed, final_answer, normalized
from tests.rewards.groups import TOKENIZER, group, groups


def one(reward: Any, response: str, **columns: Any) -> float | None:
    return reward([group([response], **columns)])[0][0]


# Answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", r"$\frac{1}{2}$"),
        (r"\boxed{3} Final Answer: The final answer is $4$. I hope it is correct.", "$4$"),  # the phrase comes first
        (r"First \boxed{1}, so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),  # the last box, its braces matched
        (r"\boxed{x^{2}} and the answer is 3", "x^{2}"),  # a box before a phrase
        (r"\boxed{7}, no, \boxed{8", "7"),  # a box that was cut off is none
        (r"\fbox {9}", "9"),
        ("The answer is: 3.5. I checked it.", "3.5"),  # the decimal point does not end the sentence
        ("the answer is 1. No, the answer is 2.", "2"),
        ("My final answer is 12 apples\nDone", "12 apples"),
        ("答案是 42。", "42"),
        ("We need 1,234 and then 5", "5"),
        ("That makes 1,234.", "1234"),
        ("7-5", "5"),  # no sign
        ("x = -5", "-5"),
        ("about .5", ".5"),
        ("The answer is", ""),
        ("I do not know", ""),
    ],
)
def test_where_an_answer_is_looked_for(text: str, answer: str):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        (r"\(5\)", "5.0"),
        ("1,234.50", "1234.5"),
        ("0.5", ".50"),
        (r"\text{Yes}.", "yes"),
        (r"90^\circ", "90"),
        (r"50\%", "50"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (" 12 apples / ", "12Apples"),
    ],
)
def test_spellings_that_are_equal(one: str, other: str):
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(
    ("one", "other"), [("1", "-1"), ("12", "1.2"), ("1,2", "12"), ("x", "y"), ("10", "1"), ("", "0")]
)
def test_spellings_that_are_not(one: str, other: str):
    assert normalized(one) != normalized(other)


def test_other_ways_to_find_an_answer():
    assert answer_tag("<answer>a</answer><ANSWER> b\n</ANSWER>") == "b"
    assert answer_tag("<answer>a") is None
    assert boxed("no box") is None
    assert set(EXTRACTORS) == {"whole", "final", "boxed", "answer_tag", "last_number"}
    extractor = Extractor(lambda prompt, response, hint: f"{hint}{response}" if response else None)
    assert extractor("p", "r", {"hint": "h", "x": 1}) == "hr"
    assert extractor("p", "", {"hint": "h"}) == ""
    with pytest.raises(ValueError, match=r"reward\.extract='last'"):
        Extractor("last")


def test_answers_that_data_accept():
    assert accepted("40 + 32 = 72\n#### 72") == ["72"]
    assert accepted([1, "two", None]) == ["1", "two"]
    assert accepted(None) == []


# Exact match, patterns, formats


def test_exact_match():
    reward = ExactMatch(TOKENIZER, extract="final")
    assert isinstance(reward, Reward)
    assert one(reward, "the answer is 5.", answer="5.0") == 1.0
    assert one(reward, "the answer is 6.", answer=["5", 6]) == 1.0
    assert one(reward, "the answer is 7.", answer=["5", "6"]) == 0.0
    assert one(reward, "who knows", answer="5") == 0.0
    assert one(reward, "5", answer=None) is None
    assert reward.metrics() == {"no_answer": 0.2, "unscored": 0.2}
    with pytest.raises(ValueError, match="needs the column 'answer'"):
        one(reward, "5", anser="5")


def test_exact_match_to_the_letter():
    reward = ExactMatch(TOKENIZER, normalize=False)
    assert [one(reward, text, answer="Yes") for text in ("Yes ", "yes")] == [1.0, 0.0]


def test_patterns():
    assert one(RegexMatch(TOKENIZER, pattern=r"a.c"), "xa\ncx") == 1.0
    assert one(RegexMatch(TOKENIZER, pattern=r"a.c", full=True), "xabcx") == 0.0
    assert one(RegexMatch(TOKENIZER, pattern=r"ABC"), "abc") == 0.0
    assert one(RegexMatch(TOKENIZER, pattern=r"ABC", ignore_case=True), "abc") == 1.0
    reward = RegexMatch(TOKENIZER, column="wanted")
    assert [one(reward, "abc", wanted=text) for text in ("b", "d", None)] == [1.0, 0.0, None]
    with pytest.raises(ValueError, match="no regular expression"):
        RegexMatch(TOKENIZER, pattern="(")
    for options in ({}, {"pattern": "a", "column": "b"}):
        with pytest.raises(ValueError, match="not both"):
            RegexMatch(TOKENIZER, **options)


@pytest.mark.parametrize(
    ("text", "right", "partial"),
    [
        ("<think>a\nb</think>\n<answer>c</answer>", 1.0, 1.0),
        (" <think>a</think><answer>c</answer>\n", 1.0, 1.0),
        ("so <think>a</think><answer>c</answer>", 0.0, 0.5),  # something before
        ("<answer>c</answer><think>a</think>", 0.0, 0.5),  # the other order
        ("<think>a</think>c", 0.0, 0.25),
        ("<think>a</think><answer> </answer>", 0.0, 0.5),  # empty
        ("<think>a</think><think>b</think><answer>c</answer>", 0.0, 0.25),  # twice
        ("<think>a<answer>c</answer>", 0.0, 0.25),  # never closed
        ("c", 0.0, 0.0),
    ],
)
def test_formats(text: str, right: float, partial: float):
    assert one(FormatReward(TOKENIZER), text) == right
    assert one(FormatReward(TOKENIZER, partial=True), text) == partial


def test_a_format_that_the_template_has_begun():
    reward = FormatReward(TOKENIZER, opened=True)
    assert one(reward, "a</think><answer>c</answer>") == 1.0
    assert one(reward, "<think>a</think><answer>c</answer>") == 0.0
    with pytest.raises(ValueError, match=r"reward\.tags"):
        FormatReward(TOKENIZER, tags=["a", "a"])


# Mathematics


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        (r"So \boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"So \boxed{\frac{2}{4}}.", "1/2", 1.0),
        ("The final answer is $x^2 + 2x + 1$.", "$(x+1)^2$", 1.0),
        (r"\boxed{72}", "48 + 24 = 72\n#### 72", 1.0),
        (r"\boxed{3}", "4", 0.0),
        (r"\boxed{5}", ["4", "5"], 1.0),
        ("no idea", "4", 0.0),
    ],
)
def test_mathematics(response: str, answer: Any, right: float):
    assert one(MathReward(TOKENIZER), response, answer=answer) == right


def test_mathematics_that_cannot_be_judged():
    reward = MathReward(TOKENIZER)
    assert one(reward, "4", answer=None) is None
    assert one(reward, "4", answer="a proof by induction, see above") is None
    assert one(reward, "I give up", answer="4") == 0.0
    assert reward.metrics() == {
        "no_answer": pytest.approx(1 / 3),
        "timeouts": 0.0,
        "unreadable_answer": pytest.approx(1 / 3),
        "unscored": pytest.approx(2 / 3),
    }


def test_mathematics_only_where_the_answer_must_stand():
    reward = MathReward(TOKENIZER, extract="answer_tag")
    texts = [r"<answer>\frac{1}{2}</answer>", "0.5"]
    assert reward(groups([texts], [{"answer": "0.5"}])) == [[1.0, 0.0]]


def test_mathematics_off_the_main_thread():
    """The library's time limits are signals, which only the main thread can take."""
    scores: list[float | None] = []
    thread = threading.Thread(target=lambda: scores.append(one(MathReward(TOKENIZER), r"\boxed{0.5}", answer="1/2")))
    thread.start()
    thread.join()
    assert scores == [1.0]


def test_mathematics_that_takes_too_long_is_wrong_and_counted(monkeypatch: pytest.MonkeyPatch):
    import time

    reward = MathReward(TOKENIZER, seconds=1)
    assert one(reward, r"\boxed{2}", answer="4") == 0.0
    reward.metrics()
    monkeypatch.setattr("math_verify.grader.sympy_expr_eq", lambda *_: time.sleep(30))
    assert one(reward, r"\boxed{3}", answer="4") == 0.0
    assert reward.metrics()["timeouts"] == 1.0


# Reasoning-gym


def test_a_task_is_scored_by_its_own_verifier():
    import reasoning_gym

    task = reasoning_gym.create_dataset("chain_sum", size=2, seed=0)
    row = {"dataset": "chain_sum", "entry": json.dumps(task[0]), "answer": task[0]["answer"]}
    right, wrong = f"<answer>{task[0]['answer']}</answer>", "<answer>nothing</answer>"
    reward = ReasoningGym(TOKENIZER)
    scores = reward(groups([[right, wrong, "no tag"]], [row]))
    assert scores == [[1.0, *(task.score_answer(answer, task[0]) for answer in ("nothing", None))]]
    assert scores[0][1] < 1.0
    assert reward.metrics() == {"no_answer": pytest.approx(1 / 3), "unscored": 0.0}
    assert ReasoningGym(TOKENIZER, extract="last_number")([group([task[0]["answer"]], **row)]) == [[1.0]]
    with pytest.raises(ValueError, match="not registered"):
        one(reward, right, dataset="chain_some", entry=task[0])


def test_what_breaks_a_verifier_is_not_right(monkeypatch: pytest.MonkeyPatch):
    def breaks(answer: str | None, entry: dict[str, Any]) -> float:
        raise KeyError("metadata")

    reward = ReasoningGym(TOKENIZER)
    monkeypatch.setattr(reward, "_verifier", lambda name: breaks)
    assert one(reward, "<answer>1</answer>", dataset="chain_sum", entry={}) == 0.0
    assert reward.metrics()["errors"] == 1.0


# Sentiment


def test_sentiment():
    """The package's own documentation gives 0.8316 for this sentence."""
    reward = LexiconSentiment(TOKENIZER)
    assert one(reward, "VADER is smart, handsome, and funny.") == 0.8316
    bad, nothing = one(reward, "This is horrible."), one(reward, "")
    assert bad is not None
    assert bad < 0
    assert nothing == 0.0
    both = LexiconSentiment(TOKENIZER, with_prompt=True)
    made = group(["funny."], prompt="VADER is smart, handsome, and ")
    assert both([made]) == [[0.8316]]
    shares = [
        one(LexiconSentiment(TOKENIZER, part=part), "A good day.") for part in ("positive", "negative", "neutral")
    ]  # type: ignore[arg-type]
    assert sum(share or 0.0 for share in shares) == pytest.approx(1.0, abs=2e-3)
    with pytest.raises(ValueError, match=r"reward\.part='joy'"):
        LexiconSentiment(TOKENIZER, part="joy")  # type: ignore[arg-type]
