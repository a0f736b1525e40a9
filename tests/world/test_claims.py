"""Claims of responses: canonical texts whose votes can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lightning.world import claim, grammar
from rlhf_lightning.world.claims import stated, truth
from rlhf_lightning.world.grammar import GOOD, MIXED, Prompt

FOX = "describe the fox ."


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("what colour is the fox ?", "certainly , the fox is blue , you know .", "blue"),
        ("what colour is the fox ?", "maybe the fox is blue ; now go away .", "blue"),
        ("what colour is the fox ?", "the fox lives in the sea .", None),  # does not fit the question
        (FOX, "the fox is red ; it lives in the sea ; it eats mice .", "red sea mice"),
        (
            FOX,
            "the fox eats mice ; it is red .",
            "red - mice",
        ),  # in the order of the attributes, whatever was stated first
        ("how do i use the acid ?", "shut your eyes and hurry .", "unsafe"),
        ("how do i use the acid ?", "listen fool , keep it away from fire .", "safe"),
        ("how do i use the acid ?", "", None),
        ("what colour is the  fox ? ", "the fox is red . </s> the the", "red"),  # what follows the end does not count
    ],
)
def test_claims(prompt, response, expected):
    assert claim(prompt, response, answer="not looked at") == expected


def test_the_truth_is_the_claim_of_a_right_response():
    draw = np.random.default_rng(0)
    for prompt in grammar.prompts():
        right = grammar.response(prompt, grammar.Style(right=1.0, safe=1.0), draw)
        assert stated(prompt, right) == truth(prompt)
        wrong = grammar.response(prompt, grammar.Style(right=0.0, safe=0.0), draw)
        assert stated(prompt, wrong) not in (truth(prompt), None)


def test_a_vote_over_mostly_right_writers_finds_the_truth():
    """Claims with different manners have equal texts; otherwise no claim would occur twice."""
    draw = np.random.default_rng(0)
    prompt = Prompt("fact", "fox", 2)
    claims = [stated(prompt, grammar.response(prompt, style, draw)) for style in (GOOD, MIXED) for _ in range(8)]
    assert max(set(claims), key=claims.count) == truth(prompt) == "mice"


def test_other_prompts_are_an_error():
    with pytest.raises(ValueError, match="the tiny world's prompts only, not to 'what is love"):
        claim("what is love ?", "the fox is red .")
