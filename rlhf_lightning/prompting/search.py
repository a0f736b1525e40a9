"""The search for a better prompt: one loop that records every computation as a row of a file.

A search selects texts to show to the optimiser, proposes new ones and scores them. All replies of the optimiser and
scores of the task go through :class:`Bench`, which looks them up in the journal first. So a killed search replays its
file and resumes there with the same texts: every random draw is a function of the seed and the step.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from rlhf_lightning.prompting.jsonl import Journal

#: A score of an example; None: it could not be judged.
Score = float | None


@dataclass(frozen=True)
class Trial:
    """Result of trying a text on an example."""

    score: Score
    response: str = ""


@dataclass(frozen=True)
class Candidate:
    """A text of the pool, with its trial on every example."""

    text: str
    trials: tuple[Trial, ...]
    step: int = 0  #: step in which it was proposed; 0: at the start
    parent: str | None = None

    @property
    def scores(self) -> list[Score]:
        """Scores, one per example."""
        return [trial.score for trial in self.trials]

    @property
    def mean(self) -> float:
        """Mean score of the examples that could be judged; minus infinity if there are none."""
        scores = [score for score in self.scores if score is not None]
        return fmean(scores) if scores else float("-inf")


class Task(Protocol):
    """A task that texts are tried on."""

    def __len__(self) -> int:
        """Examples."""
        ...

    def trials(self, text: str, examples: Sequence[int]) -> Sequence[Trial]:
        """Try a text on some examples."""
        ...

    def shown(self, example: int, placeholder: str) -> tuple[str, str]:
        """Show an example to the optimiser: the query with a placeholder for the text, and its answer."""
        ...


#: Question, number of replies, seed, step -> replies of the optimiser.
Optimizer = Callable[[str, int, int, int], Sequence[str]]


class Bench:
    """Optimiser and task behind a journal.

    Args:
        optimizer: replies to questions.
        task: tries texts.
        journal: records every reply and every trial.
        seed: seed of all random draws.
        name: name of the task in the journal.
    """

    def __init__(self, optimizer: Optimizer, task: Task, journal: Journal, seed: int = 0, name: str = "score") -> None:
        self.optimizer, self.task, self.journal, self.seed = optimizer, task, journal, seed
        self.name = name

    def ask(self, question: str, count: int, step: int) -> list[str]:
        """Get the optimiser's replies to the question of a step."""
        key = f"ask/{step}/{digest(question)}"
        if key not in self.journal.rows:
            answers = list(self.optimizer(question, count, self.seed + step, step))
            self.journal.add(key, {"step": step, "question": question, "answers": answers})
        return [str(answer) for answer in self.journal.rows[key]["answers"]]

    def trials(self, text: str, step: int, examples: Sequence[int] | None = None) -> list[Trial]:
        """Try a text on examples; None: on every example."""
        every = range(len(self.task)) if examples is None else examples
        key = f"{self.name}/{digest(text)}/{'all' if examples is None else digest(json.dumps(list(examples)))}"
        if key not in self.journal.rows:
            made = self.task.trials(text, every)
            values = {"scores": [trial.score for trial in made], "responses": [trial.response for trial in made]}
            mean = Candidate(text, tuple(made)).mean
            self.journal.add(key, {"step": step, "text": text, "score": mean if made else None, **values})
        row = self.journal.rows[key]
        return [Trial(*pair) for pair in zip(row["scores"], row["responses"], strict=True)]

    def candidate(self, text: str, step: int, parent: str | None = None) -> Candidate:
        """Try a text on every example."""
        return Candidate(text, tuple(self.trials(text, step)), step, parent)

    def generator(self, *parts: Any) -> random.Random:
        """Random generator for the given name."""
        return random.Random(digest(json.dumps([self.seed, *map(str, parts)])))


class PromptSearch(Protocol):
    """A method of improving texts; see :class:`~rlhf_lightning.prompting.opro.OPRO`."""

    steps: int

    def select(self, pool: Sequence[Candidate], step: int, bench: Bench) -> Sequence[Candidate]:
        """Select the texts that the next proposals are based on."""
        ...

    def propose(self, selected: Sequence[Candidate], step: int, bench: Bench) -> Sequence[str]:
        """New texts."""
        ...

    def score(
        self, texts: Sequence[str], selected: Sequence[Candidate], step: int, bench: Bench
    ) -> Sequence[Candidate]:
        """Score new texts; return those that join the pool."""
        ...


def run(search: PromptSearch, starts: Sequence[str], bench: Bench) -> Iterator[tuple[int, list[Candidate]]]:
    """Search, and yield the pool after the start and after each step.

    Args:
        search: the search method.
        starts: distinct texts to begin with.
        bench: optimiser and task.
    """
    pool = [bench.candidate(text, 0) for text in dict.fromkeys(starts)]
    yield 0, pool
    for step in range(1, search.steps + 1):
        selected = search.select(pool, step, bench)
        tried = {candidate.text for candidate in pool}
        texts = [text for text in dict.fromkeys(search.propose(selected, step, bench)) if text not in tried]
        pool = [*pool, *search.score(texts, selected, step, bench)]
        yield step, pool


def best(pool: Sequence[Candidate]) -> Candidate:
    """Candidate with the highest mean; the first one of equals."""
    return max(pool, key=lambda candidate: candidate.mean)


def digest(text: str) -> str:
    """Compute the digest of a text, for keys."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
