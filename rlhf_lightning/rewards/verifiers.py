"""Mathematical answers, and the tasks of reasoning-gym."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rlhf_lightning.rewards.answers import Extractor, accepted
from rlhf_lightning.rewards.equivalence import Equivalence
from rlhf_lightning.rewards.text_reward import TextReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MathReward(TextReward):
    r"""1 where the response's answer equals the data's as a mathematical object, else 0.

    ``\frac{1}{2}``, ``0.5`` and ``1/2`` are equal. An answer of the data that cannot be read gives None
    (``unreadable_answer`` counts it); a response without an answer, or one that takes too long, is wrong
    (``no_answer``, ``timeouts``). What math-verify does and does not take for equal is its own documentation's.

    Source: math-verify (HuggingFace), as in TRL's ``accuracy_reward``.
    Differences: TRL reads LaTeX alone in responses; here plain expressions count as well, unless ``extract`` says where
    the answer must stand.

    Args:
        tokenizer: of whoever made the token ids.
        column: of the data, with the answer or a list of accepted ones: LaTeX, an expression, a number, or GSM8K's text
            with ``#### 72`` at its end. A row where it is null has no score.
        extract: None lets math-verify look for the answer (a box first, then "final answer is", then the last
            expression); a name or function as in :class:`~rlhf_lightning.rewards.ExactMatch` looks there only.
        seconds: for reading one text and for one comparison.
        name: what its numbers are logged under.

    Raises:
        ImportError: math-verify is not installed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        column: str = "answer",
        extract: str | Callable[..., str | None] | None = None,
        seconds: int = 5,
        name: str = "math",
    ) -> None:
        super().__init__(tokenizer, name)
        self.answer, self.equivalence = column, Equivalence(seconds)
        self.extract = None if extract is None else Extractor(extract)
        self.required = (column,)

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """See :class:`~rlhf_lightning.rewards.TextReward`."""
        before = self.equivalence.timeouts
        accepted_answers = accepted(self.column(columns, self.answer))
        answers = [answer for text in accepted_answers if (answer := self.equivalence.answer(text))]
        if not answers:
            self.count(unreadable_answer=bool(accepted_answers))
            return None
        extracted = self._extracted(prompt, response, columns)
        right = bool(extracted) and any(self.equivalence.equal(answer, extracted) for answer in answers)
        self.count(no_answer=not extracted, timeouts=self.equivalence.timeouts - before)
        return float(right)

    def _extracted(self, prompt: str, response: str, columns: Mapping[str, Any]) -> list[Any]:
        if self.extract is None:
            return self.equivalence.parsed(response)
        return self.equivalence.answer(self.extract(prompt, response, columns))


class ReasoningGym(TextReward):
    """Score of an answer by the verifier of a reasoning-gym task, in [0, 1]; some tasks give partial credit.

    Source: "Reasoning Gym", arXiv:2505.24760, and its library, whose ``score_answer`` is called as it is; what a
    wrong answer or none gets is the task's choice.

    Args:
        tokenizer: of whoever made the token ids.
        extract: where the answer stands: ``answer_tag`` is the library's own convention; others and functions as in
            :class:`~rlhf_lightning.rewards.ExactMatch`.
        dataset: column with the task's name.
        entry: column with the task's entry (question, answer, metadata), a mapping or JSON text.
        name: what its numbers are logged under.

    Raises:
        ImportError: reasoning-gym is not installed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        extract: str | Callable[..., str | None] = "answer_tag",
        dataset: str = "dataset",
        entry: str = "entry",
        name: str = "reasoning_gym",
    ) -> None:
        try:
            from reasoning_gym import get_score_answer_fn
        except ImportError as error:
            raise ImportError(
                "reward=reasoning_gym needs reasoning-gym: pip install 'rlhf-lightning[reasoning]'"
            ) from error
        super().__init__(tokenizer, name)
        self.extract, self.dataset, self.entry = Extractor(extract), dataset, entry
        self.required = (dataset, entry)
        self._verifier = functools.cache(get_score_answer_fn)

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """See :class:`~rlhf_lightning.rewards.TextReward`.

        Raises:
            ValueError: the library has no such task.
        """
        verify = self._verifier(self.column(columns, self.dataset))
        entry = self.column(columns, self.entry)
        entry = json.loads(entry) if isinstance(entry, str) else entry
        answer = self.extract(prompt, response, columns)
        self.count(no_answer=not answer)
        try:
            return float(verify(answer=answer or None, entry=entry))
        except (
            Exception
        ):  # verifiers of a hundred tasks parse a model's text: a text that breaks one is not a right answer
            self.count(errors=1)
            return 0.0
