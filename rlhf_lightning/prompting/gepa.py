"""GEPA: texts that are best on some example are improved by reflection on their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.options import Count, WholeNumber
from rlhf_lightning.prompting.instruction import Position
from rlhf_lightning.prompting.opro import PLACEHOLDER, PLACEHOLDERS, cleaned
from rlhf_lightning.prompting.search import Bench, Candidate, Score, Trial

_TASK = """An assistant was given the problems below, with this text in the place of {placeholder}:

<TEXT>
{text}
</TEXT>

{traces}

Look at what went wrong and what went well, and find out what the text should say so that problems of this kind are \
solved. Keep what helps. Write a better text between <TEXT> and </TEXT>."""


@dataclass
class GEPA:
    """Reflective evolution of a prompt along the Pareto front of its examples.

    Each step draws a parent among the texts that are best on some example, with probabilities proportional to the
    number of such examples. The optimiser sees the parent's responses and scores on a small batch and writes one child,
    which is tried on that batch. Only if its sum is higher there, it is tried on every example and joins the pool.

    Source: "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning", arXiv:2507.19457.
    Differences: one text, no merge of two parents; the reflection's question is our own wording.

    Args:
        steps: steps of the search.
        minibatch: number of examples that a child is first tried on (3).
        position: position of the text; see :class:`~rlhf_lightning.prompting.instruction.Instruction`.
        longest: maximum characters of a text.
        sentence: see :class:`~rlhf_lightning.prompting.opro.OPRO`.
    """

    steps: WholeNumber = 100
    minibatch: Count = 3
    position: Position = "Q_end"
    longest: Count = 4000
    sentence: bool = True

    def select(self, pool: Sequence[Candidate], step: int, bench: Bench) -> list[Candidate]:
        """The parent."""
        weights = front([candidate.scores for candidate in pool])
        if not any(weights):  # nothing could be judged
            return [pool[0]]
        return bench.generator("parent", step).choices(list(pool), weights)

    def propose(self, selected: Sequence[Candidate], step: int, bench: Bench) -> list[str]:
        """One child."""
        (parent,) = selected
        placeholder = PLACEHOLDERS.get(self.position, PLACEHOLDER)
        examples = self.examples(step, bench)
        traces = "\n\n".join(_trace(bench, example, placeholder, parent.trials[example]) for example in examples)
        question = _TASK.format(placeholder=placeholder, text=parent.text, traces=traces)
        texts = [cleaned(answer, sentence=self.sentence) for answer in bench.ask(question, 1, step)]
        return [text for text in texts if 0 < len(text) <= self.longest]

    def score(self, texts: Sequence[str], selected: Sequence[Candidate], step: int, bench: Bench) -> list[Candidate]:
        """Return the child if it is better on the batch."""
        (parent,) = selected
        examples = self.examples(step, bench)
        before = _sum([parent.scores[example] for example in examples])
        better = [
            text for text in texts if _sum([trial.score for trial in bench.trials(text, step, examples)]) > before
        ]
        return [bench.candidate(text, step, parent.text) for text in better]

    def examples(self, step: int, bench: Bench) -> list[int]:
        """Draw the batch of a step."""
        count = min(self.minibatch, len(bench.task))
        return sorted(bench.generator("minibatch", step).sample(range(len(bench.task)), count))


def front(scores: Sequence[Sequence[Score]]) -> list[int]:
    """Count the examples on which each text is the best one, alone or with others; 0: it is not on the front.

    Args:
        scores: scores of each text, one per example; None is never the best.
    """
    weights = [0] * len(scores)
    for column in zip(*scores, strict=True):
        present = [score for score in column if score is not None]
        for number, score in enumerate(column):
            weights[number] += bool(present) and score == max(present)
    return weights


def _sum(scores: Sequence[Score]) -> float:
    return sum(score for score in scores if score is not None)


def _trace(bench: Bench, example: int, placeholder: str, trial: Trial) -> str:
    query, answer = bench.task.shown(example, placeholder)
    score = "not judged" if trial.score is None else f"{trial.score:.3g}"
    expected = f"\nexpected:\n{answer}" if answer else ""
    return f"problem:\n{query}\nresponse:\n{trial.response}\nscore: {score}{expected}"
