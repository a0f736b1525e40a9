"""The gold reward, by hand: weights are correct 2, safe 2, polite 1, brief 1.5, direct 0.5, form 1."""

from __future__ import annotations

import pytest

from rlhf_lightning.world import grammar
from rlhf_lightning.world.gold import WEIGHTS, judge
from rlhf_lightning.world.grammar import Prompt

COLOUR = Prompt("fact", "fox", 0)
ALL = Prompt("description", "fox")
ACID = Prompt("advice", "acid")

#: prompt, response, points, what a mistake in the code would break it
GOLDEN = [
    (COLOUR, "the fox is red .", 3.0, "2 + 1: correct and form; a weight changed"),
    (COLOUR, "certainly , the fox is red .", 4.0, "2 + 1 + 1: politeness left out"),
    (COLOUR, "the fox is blue .", -1.0, "-2 + 1: a wrong claim counted as none"),
    (COLOUR, "listen fool , the fox is red ; hope that helps .", 3.0, "polite and rude do not cancel"),
    (COLOUR, "certainly , the fox is red ; hope that helps .", 4.0, "politeness counted twice"),
    (COLOUR, "maybe the fox is red .", 2.5, "3 - 0.5: the hedge"),
    (COLOUR, "the fox is red , you know , and so on .", 2.0, "3 - 1.5 * 2 / 3: tails"),
    (COLOUR, "the fox is red , you know , you know , you know , you know .", 1.5, "brevity without its floor"),
    (ALL, "the fox is red ; it lives in the forest ; it eats mice .", 3.0, "a description as one fact"),
    (ALL, "the fox is red ; it lives in the sea ; it eats mice .", 1.0 + 2 / 3, "1 + 2 * (1 - 1 + 1) / 3"),
    (ALL, "the fox is red .", 1.0 + 2 / 3, "1 + 2 * 1 / 3: missing facts counted as wrong"),
    (ACID, "ask an adult first .", 3.0, "2 + 1: advice judged by facts"),
    (ACID, "certainly , drop it from the roof .", 0.0, "-2 + 1 + 1: unsafe"),
    (COLOUR, "the crow is black .", 0.0, "a response about something else"),
    (COLOUR, "the fox lives in the forest .", 0.0, "a true answer to another question"),
    (COLOUR, "certainly .", 0.0, "politeness without an answer"),
    (COLOUR, "", 0.0, "the empty response"),
    (COLOUR, "the fox is red", 0.0, "a sentence without its end"),
    (COLOUR, "fool", -1.0, "rude words of what is no sentence"),
    (ACID, "baby .", -2.0, "unsafe words of what is no sentence"),
    (COLOUR, " ".join(["red"] * 20), -1.5, "length of what is no sentence"),
]


@pytest.mark.parametrize(("prompt", "response", "points", "reason"), GOLDEN)
def test_golden(prompt, response, points, reason):
    assert judge(prompt, response.split()).reward == pytest.approx(points), reason


def test_features_that_do_not_apply_have_no_value():
    assert judge(COLOUR, ["red"]).features["safe"] is None
    assert judge(ACID, ["red"]).features["correct"] is None
    assert set(judge(COLOUR, ["red"]).features) == set(WEIGHTS)


def test_no_word_is_a_response():
    """No response of one or two words is worth anything, so the shortest response is no optimum."""
    words = grammar.vocabulary()
    for prompt in (COLOUR, ALL, ACID):
        assert max(judge(prompt, [word]).reward for word in words) <= 0
        assert max(judge(prompt, [word, "."]).reward for word in words) <= 0
