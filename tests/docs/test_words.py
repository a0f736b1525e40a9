"""The word list: what it refuses, what it allows, and that it reads every kind of file."""

from __future__ import annotations

import json

import pytest

from tools.words import hits, of_markdown, of_notebook, of_python, of_yaml

MODULE = '''"""What a module holds."""

found_rows, in_place, ScoredGroup = 1, 2, 3
answer_tag = gold_answers = known_args  # a use is no binding


def make(own, *, rows):
    """Return the rows; the answers of the policy
    were drawn anew, as ``found`` and `said`.
    """
    # a killed run goes
    # on; the gold answer is read, and is found again in its own place
    raise ValueError(f"{own} said {rows}: the server answered")
'''


def refused(pieces, path="rlhf_lightning/some.py"):
    return [(line, word) for line, word, _ in sorted(hits(path, pieces))]


def test_python():
    assert refused(of_python(MODULE)) == [
        (1, "What"),
        (3, "found_rows"),
        (7, "own"),
        (8, "answers"),
        (9, "anew"),
        (11, "goes on"),
        (13, "said"),
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def test_what_is_found_in_its_own_place(): ...", []),
        ("def test_a_killed_run_goes_on(): ...", ["goes on"]),
        ("def helper(found): ...", ["found"]),
        ('text = "it was said anew"', []),  # strings of tests are data
        ('"""How a test begins."""', ["How"]),
    ],
)
def test_tests(source, words):
    assert [word for _, word in refused(of_python(source, is_test=True))] == words


@pytest.mark.parametrize(
    ("prose", "words"),
    [
        ("The judge's answer, a request answered with 404, answer extraction, and the gold answers.", []),
        ("The policy answers well.", ["answers"]),
        ("The gradients are turned\nover; it goes on to the next one, and then goes on.", ["turned over", "goes on"]),
        ("Found in a known place of its own, further beside the scored one: names alone are refused.", []),
        ("[a page](docs/answer.md) of `answer`\n```\nsaid anew\n```", []),
        ("Text.\n```python\nmine = 1\n```", ["mine"]),
    ],
)
def test_markdown(prose, words):
    assert [word for _, word in refused(of_markdown(prose))] == words


def test_lines_of_pages_and_yaml():
    assert refused(of_markdown("a\n```python\nx = 1\nown = 2\n```\nb\nanew")) == [(4, "own"), (7, "anew")]
    assert refused(of_yaml("kl:\n  place: loss  # said\nname: 'anew'\n# goes\n# on")) == [
        (2, "place"),
        (2, "said"),
        (4, "goes on"),
    ]


def test_cells_of_notebooks():
    cells = [
        {"cell_type": "markdown", "source": ["# A page\n", "\n", "It was said."]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "theirs = 1  # drawn anew"]},
    ]
    text = json.dumps({"cells": cells}, indent=1)
    lines = text.splitlines()
    assert [(word, word in lines[line - 1]) for line, word in refused(of_notebook(text))] == [
        ("said", True),
        ("anew", True),
        ("theirs", True),
    ]


def test_files_that_are_allowed_a_word():
    source = "answers = 1"
    assert refused(of_python(source), "rlhf_lightning/rewards/answers.py") == []
    assert refused(of_python(source)) == [(1, "answers")]
