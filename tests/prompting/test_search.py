"""The search of a prompt: golden values, OPRO's numeric demos, and a kill at any row of its file."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.prompting.gepa import GEPA, front
from rlhf_lightning.prompting.instruction import Instruction
from rlhf_lightning.prompting.jsonl import Journal
from rlhf_lightning.prompting.opro import OPRO, cleaned
from rlhf_lightning.prompting.search import Bench, Candidate, Optimizer, PromptSearch, Trial, best, run
from tests.prompting.numeric import NumericSearch, Objective, last_list, length, squares


def candidate(text: str, *scores: float | None, step: int = 0) -> Candidate:
    return Candidate(text, tuple(Trial(score, f"{text} {at}") for at, score in enumerate(scores)), step)


class Words:
    """A task that scores a text by the words of each example that it has."""

    words = ("alpha", "beta", "gamma", "delta")

    def __init__(self) -> None:
        self.tried: list[str] = []

    def __len__(self) -> int:
        return len(self.words)

    def trials(self, text: str, examples: Sequence[int]) -> list[Trial]:
        self.tried.append(text)
        return [Trial(float(self.words[at] in text), f"response {at}") for at in examples]

    def shown(self, example: int, placeholder: str) -> tuple[str, str]:
        return f"{self.words[example]}?\n{placeholder}", self.words[example]


def adding(question: str, count: int, seed: int, step: int) -> list[str]:
    """An optimiser that adds one word of the question to the best text in it."""
    text = question.rpartition("text:\n")[2].partition("\n")[0] or question.partition("<TEXT>\n")[2].partition("\n")[0]
    words = [word for word in Words.words if f"{word}?" in question]
    return [f"<TEXT>{text.strip('.')} {words[(seed + number) % len(words)]}</TEXT>" for number in range(count)]


def bench(folder: Path, optimizer: Optimizer = adding, task: Any = None, seed: int = 0) -> Bench:
    journal = Journal(folder / "search.jsonl")
    journal.__enter__()
    return Bench(optimizer, task or Words(), journal, seed)


def searched(search: PromptSearch, bench: Bench, *starts: str) -> list[Candidate]:
    return list(run(search, starts or ("Go.",), bench))[-1][1]


def test_golden_front():
    assert front([[1, 0, 1], [0, 1, 0], [0.5, 0.5, 0.5]]) == [2, 1, 0]
    assert front([[None, 1], [None, 1]]) == [1, 1]  # a tie leads twice, what nobody could judge leads nowhere


def test_a_text_that_leads_nowhere_is_no_parent(tmp_path: Path):
    """C has the better mean than B, and B is drawn a third of the time."""
    pool = [candidate("A", 1, 0, 1), candidate("B", 0, 1, 0), candidate("C", 0.5, 0.5, 0.5)]
    drawn = [GEPA().select(pool, step, bench(tmp_path))[0].text for step in range(300)]
    assert set(drawn) == {"A", "B"}
    assert drawn.count("B") == pytest.approx(100, abs=25)
    assert best(pool).text == "A"


def test_golden_squares():
    assert [squares(*pair) for pair in ((16, 14), (15, 15), (14, 16), (15, 14))] == [42_925, 50, 38_025, 0]


def test_regression_is_solved_by_reading_the_meta_prompt(tmp_path: Path):
    """The optimiser sees integers only: the best pair is the last one, and its neighbours are tried."""
    steps = [(dw, db) for dw, db in itertools.product((-1, 0, 1), repeat=2) if (dw, db) != (0, 0)]

    def optimizer(question: str, count: int, seed: int, step: int) -> list[str]:
        w, b = last_list(question.rpartition("] value")[0] + "]") or [0, 0]
        return [f"I try [{w + dw}, {b + db}]" for dw, db in steps[:count]]

    draws = random.Random(1)
    starts = [f"{draws.randint(10, 20)}, {draws.randint(10, 20)}" for _ in range(5)]
    task = Objective(lambda text: squares(*map(int, text.split(","))))
    pool = searched(NumericSearch(steps=60), bench(tmp_path, optimizer, task), *starts)
    assert best(pool).text == "15, 14"
    assert best(pool).mean == 0
    assert len({one.text for one in pool}) == len(pool)


def test_a_tour_is_shortened_and_what_is_no_tour_has_no_score(tmp_path: Path):
    points = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0), (0.5, 1.5), (0.5, -0.5)]

    def value(text: str) -> float | None:
        tour = [int(part) for part in text.split(",")]
        return length(points, tour) if sorted(tour) == list(range(len(points))) else None

    def optimizer(question: str, count: int, seed: int, step: int) -> list[str]:
        tour = last_list(question.rpartition("] value")[0] + "]") or []
        draws = random.Random(seed)
        replies = ["[0, 0, 1, 2, 3, 4]", "no list"]
        for _ in range(count - 2):
            low, high = sorted(draws.sample(range(len(tour) + 1), 2))
            replies.append(str(tour[:low] + tour[low:high][::-1] + tour[high:]))
        return replies

    search = NumericSearch(steps=40, shown=10, size=6)
    pool = searched(search, bench(tmp_path, optimizer, Objective(value)), "0, 2, 1, 3, 4, 5")
    shortest = min(length(points, [0, *rest]) for rest in itertools.permutations(range(1, 6)))
    assert -best(pool).mean == pytest.approx(shortest)
    assert candidate("x", None).mean == float("-inf")
    assert "0, 0, 1, 2, 3, 4" in {one.text for one in pool if one.mean == float("-inf")}


def test_the_meta_prompt_shows_the_best_ascending_above_the_threshold(tmp_path: Path):
    search = OPRO(shown=3, threshold=0.3, exemplars=2)
    pool = [candidate(name, score) for name, score in (("a", 0.9), ("b", 0.2), ("c", 0.5), ("d", 0.1), ("e", 0.334))]
    selected = search.select(pool, 1, bench(tmp_path))
    assert [one.text for one in selected] == ["e", "c", "a"]
    assert [one.text for one in OPRO(shown=5).select(pool, 1, bench(tmp_path))] == ["e", "c", "a"]
    question = search.question(selected, [1, 0], bench(tmp_path))
    assert "text:\ne\nscore:\n33\n\ntext:\nc\nscore:\n50\n\ntext:\na\nscore:\n90\n" in question
    assert "problem:\nbeta?\n<INS>\nanswer:\nbeta\n\nproblem:\nalpha?" in question


def test_choice_of_shown_examples(tmp_path: Path):
    desk = bench(tmp_path)
    pool = [candidate("a", 1, 0, 0, 1), candidate("b", 1, 0, 1, 1), candidate("c", 0.2, 1, 1, 1)]
    random_ones = [OPRO(exemplars=2).examples(pool, step, desk) for step in range(8)]
    assert len({tuple(one) for one in random_ones}) > 1
    assert random_ones == [OPRO(exemplars=2).examples(pool, step, desk) for step in range(8)]
    constant = OPRO(exemplars=2, choice="constant")
    assert constant.examples(pool, 1, desk) == constant.examples(pool, 7, desk)
    wrong = OPRO(exemplars=2, shown=1, choice="accumulative_most_frequent")
    assert wrong.examples(wrong.select(pool, 1, desk), 1, desk) == [0, 1]
    now = OPRO(exemplars=1, shown=1, choice="current_most_frequent")
    assert now.examples(now.select(pool, 1, desk), 1, desk) == [0]  # of c alone


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Sure: <TEXT> think **slowly** </TEXT> done", "Think slowly."),
        ("be brief!", "Be brief!"),
        ("<TEXT></TEXT>", ""),
        ("<TEXT>open end", "Open end."),
    ],
)
def test_replies_of_the_optimiser_are_cleaned(answer: str, text: str):
    assert cleaned(answer) == text


def test_texts_that_are_not_tried():
    search = OPRO(longest=10, digits=False)
    assert [search.usable(text) for text in ("Short.", "Too long a text.", "Say 7.", "A <INS>.", "")] == [
        *(True, False, False, False, False)
    ]


def test_opro_and_gepa_improve_and_try_no_text_twice(tmp_path: Path):
    for name, search in (("opro", OPRO(steps=6, proposals=3, threshold=None)), ("gepa", GEPA(steps=12))):
        task = Words()
        pool = searched(search, bench(tmp_path / name, task=task))
        assert best(pool).mean > pool[0].mean
        assert len({one.text for one in pool}) == len(pool)
        if name == "opro":
            assert len(task.tried) == len(set(task.tried))


def test_a_child_that_is_not_better_on_the_batch_is_not_tried_on_all(tmp_path: Path):
    task = Words()
    pool = searched(GEPA(steps=5), bench(tmp_path, lambda *_: ["<TEXT>nothing new</TEXT>"], task))
    assert [one.text for one in pool] == ["Go."]
    rows = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    tries = [row for row in rows if row.get("text") == "Nothing new."]
    assert tries
    assert all(len(row["scores"]) == 3 for row in tries)


class KillError(Exception):
    """Simulates the end of the process."""


@pytest.mark.parametrize("search", [OPRO(steps=4, proposals=2, threshold=None), GEPA(steps=6)], ids=["opro", "gepa"])
def test_a_killed_search_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, search: PromptSearch):
    """Killed before each row of its file, and in the middle of each, it writes the same file."""
    whole = searched(search, bench(tmp_path / "whole"))
    expected = (tmp_path / "whole" / "search.jsonl").read_bytes()
    lines = expected.splitlines(keepends=True)
    for rows in range(len(lines)):
        folder = tmp_path / str(rows)
        folder.mkdir()
        (folder / "search.jsonl").write_bytes(b"".join(lines[:rows]) + lines[rows][: len(lines[rows]) // 2])
        assert searched(search, bench(folder)) == whole
        assert (folder / "search.jsonl").read_bytes() == expected


def test_nothing_is_asked_again(tmp_path: Path):
    search = OPRO(steps=3, proposals=2, threshold=None)
    whole = searched(search, bench(tmp_path))

    def dead(*_: Any) -> list[str]:
        raise KillError

    task = Words()
    assert searched(search, bench(tmp_path, dead, task)) == whole
    assert task.tried == []
    with pytest.raises(KillError):  # a longer search resumes where it ended
        searched(OPRO(steps=4, proposals=2, threshold=None), bench(tmp_path, dead, task))


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("before_Q", [("system", "Think."), ("user", "Why?")]),
        ("Q_begin", [("user", "Think.\nWhy?")]),
        ("Q_end", [("user", "Why?\nThink.")]),
        ("A_begin", [("user", "Why?"), ("assistant", "Think.")]),
    ],
)
def test_positions_of_a_text(position: Any, expected: list[tuple[str, str]]):
    turns = Instruction(text="Think.", position=position)([{"role": "user", "content": "Why?"}])
    assert [(turn["role"], turn["content"]) for turn in turns] == expected
