"""OPRO: a language model sees texts with their scores and writes better ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_lightning.options import Count, NonNegative, WholeNumber
from rlhf_lightning.prompting.instruction import Position
from rlhf_lightning.prompting.search import Bench, Candidate

PLACEHOLDERS = {"A_begin": "<Start>"}
PLACEHOLDER = "<INS>"
Choice = Literal["random", "constant", "accumulative_most_frequent", "current_most_frequent"]

_INSTRUCTION = "an instruction that is added to each problem"
_BEGINNING = "the beginning of the answer to each problem"
_TASK = """Your task is to write {what}. Below are earlier texts with their scores, from the worst to the best one; a \
score lies between 0 and 100, and higher is better.

{history}
{exemplars}
Write a new text that is different from all of the earlier ones and has a higher score. It should be concise, \
effective and fit every problem of this kind. Write it between <TEXT> and </TEXT>."""
_EXEMPLARS = """
Here are some of the problems. Your text takes the place of {placeholder}; the answer should be the one that is given.

{shown}
"""


@dataclass
class OPRO:
    """Optimization by prompting.

    Each step shows the optimiser the best texts in ascending order, each with its score, and a few training examples.
    It writes several new texts, which are cleaned, compared with all earlier ones, and scored on the same examples.

    Source: "Large Language Models as Optimizers", arXiv:2309.03409; settings of google-deepmind/opro.
    Differences: the
    meta-prompt is our own wording; a score is 100 times the mean reward, whatever the reward; of examples that are
    wrong equally often the first ones are shown, where google-deepmind/opro draws among them.

    Args:
        steps: steps of the search (200).
        proposals: replies of the optimiser per step (8).
        shown: number of best texts that the optimiser sees (20).
        threshold: minimum mean score of these texts (0.3: GPT as scorer; 0.15 or 0: text-bison); None: any.
        exemplars: number of training examples that it sees (3).
        choice: choice of these examples: ``random`` (others at each step), ``constant``, or those most often wrong:
            among all texts so far (``accumulative_most_frequent``) or among those shown (``current_most_frequent``).
        right: score at or above which an example counts as right, for the last two.
        position: position of the text; see :class:`~rlhf_lightning.prompting.instruction.Instruction`.
        longest: maximum characters of a text (500).
        digits: keep texts with digits; the authors remove them on GSM8K, where they are answers.
        sentence: begin a text with a capital letter and end it with a full stop, as the authors do; False: keep it as
            written.
    """

    steps: WholeNumber = 200
    proposals: Count = 8
    shown: Count = 20
    threshold: NonNegative | None = 0.3
    exemplars: WholeNumber = 3
    choice: Choice = "random"
    right: float = 0.5
    position: Position = "Q_end"
    longest: Count = 500
    digits: bool = True
    sentence: bool = True

    @property
    def placeholder(self) -> str:
        """Placeholder of the text in an example."""
        return PLACEHOLDERS.get(self.position, PLACEHOLDER)

    def select(self, pool: Sequence[Candidate], step: int, bench: Bench) -> list[Candidate]:
        """Select the best texts, ascending; the errors of all others are kept for the choice of examples."""
        self._pool = pool
        best = sorted(pool, key=lambda candidate: candidate.mean)[-self.shown :]
        return [one for one in best if self.threshold is None or one.mean >= self.threshold]

    def propose(self, selected: Sequence[Candidate], step: int, bench: Bench) -> list[str]:
        """Propose new texts, cleaned."""
        question = self.question(selected, self.examples(selected, step, bench), bench)
        texts = (cleaned(answer, sentence=self.sentence) for answer in bench.ask(question, self.proposals, step))
        return [text for text in texts if self.usable(text)]

    def score(self, texts: Sequence[str], selected: Sequence[Candidate], step: int, bench: Bench) -> list[Candidate]:
        """Try every new text on every example."""
        return [bench.candidate(text, step) for text in texts]

    def question(self, selected: Sequence[Candidate], examples: Sequence[int], bench: Bench) -> str:
        """The meta-prompt."""
        history = "".join(f"text:\n{one.text}\nscore:\n{round(100 * one.mean)}\n\n" for one in selected)
        shown = (bench.task.shown(example, self.placeholder) for example in examples)
        listed = "\n\n".join(f"problem:\n{query}\nanswer:\n{answer}" for query, answer in shown)
        exemplars = _EXEMPLARS.format(placeholder=self.placeholder, shown=listed) if listed else ""
        noun = _BEGINNING if self.position == "A_begin" else _INSTRUCTION
        return _TASK.format(what=noun, history=history, exemplars=exemplars)

    def examples(self, selected: Sequence[Candidate], step: int, bench: Bench) -> list[int]:
        """Choose the examples that the optimiser sees."""
        every, count = range(len(bench.task)), min(self.exemplars, len(bench.task))
        if self.choice in ("random", "constant"):
            name = step if self.choice == "random" else 0
            return sorted(bench.generator("exemplars", name).sample(every, count))
        among = self._pool if self.choice == "accumulative_most_frequent" else selected
        errors = [sum((one.scores[at] or 0.0) < self.right for one in among) for at in every]
        return sorted(sorted(every, key=lambda at: -errors[at])[:count])

    def usable(self, text: str) -> bool:
        """Check that a text is short enough and has no placeholder and, if required, no digits."""
        fits = 0 < len(text) <= self.longest and self.placeholder not in text
        return fits and (self.digits or not any(character.isdigit() for character in text))


def cleaned(answer: str, *, sentence: bool = True) -> str:
    """Extract the text from a reply of the optimiser: between its marks, or all of it; by default as a sentence."""
    _, opened, inside = answer.partition("<TEXT>")
    text = (inside.partition("</TEXT>")[0] if opened else answer).replace("**", "").strip()
    if not text or not sentence:
        return text
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?:" else f"{text}."
