"""A language model as a judge: it rates a response, or says which of two is better.

Who judges is a server, or the policy that is trained, as it is at that moment (self-rewarding). What the judge writes
is text; what cannot be read as a verdict is counted and gives no score, never a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rlhf_lightning.options import value_object
from rlhf_lightning.renamed import former_arguments
from rlhf_lightning.rewards.asking import Ask, asker
from rlhf_lightning.rewards.base import Scores, WinMatrix
from rlhf_lightning.rewards.graders.templates import Context
from rlhf_lightning.rewards.judge_options import RatingOptions, WritingOptions
from rlhf_lightning.rewards.questions import QuestionReward
from rlhf_lightning.rewards.verdicts import choice
from rlhf_lightning.rewards.verdicts import rating as read_rating
from rlhf_lightning.rewards.win_matrix import matrix_of, mean_wins
from rlhf_lightning.types import SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RATE = """Rate the answer to a question from {low:g} to {high:g}. The best answer is correct, complete, clear and no
longer than it has to be. Give your reasons in a sentence or two.

Question:
{{{{ item.prompt }}}}

Answer:
{{{{ sample.output_text }}}}

End with one JSON object and nothing behind it: {{"score": x}}, where x is a number from {low:g} to {high:g}."""
COMPARE = """Which answer to the question is better, A or B? The better one is correct, complete, clear and no longer
than it has to be. The order of the two says nothing. Give your reasons in a sentence or two.

Question:
{{ item.prompt }}

Answer A:
{{ item.response_a }}

Answer B:
{{ item.response_b }}

End with [[A]], [[B]], or [[C]] for a tie."""
_TIE = "C"


class _Judge(QuestionReward):
    """Common parts of both judges: a template, the model to ask, and options.

    Args:
        tokenizer: the policy's.
        judge: an :class:`~rlhf_lightning.rewards.asking.Ask` or a partial that makes one; None: the policy.
        question: the template.
        system: of the conversation with the judge; None: no such message.
        pattern: regular expression with one group that finds the verdict.
        writing: how it writes; the options of ``WritingOptions`` by name.
        name: what the scores are logged under.
        fields: fields of ``item`` that do not come from the data.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        judge: Any,
        question: str,
        system: str | None,
        pattern: str | None,
        writing: WritingOptions | Mapping[str, Any] | None,
        name: str,
        fields: Collection[str],
    ) -> None:
        super().__init__(tokenizer, name, question, fields)
        self.policy: Any = None  #: set by the training loop
        self._tokenizer, self._judge = tokenizer, judge
        self._system, self.pattern = system, pattern
        self._writing = value_object(WritingOptions, writing, WritingOptions.node)
        if pattern is not None and re.compile(pattern).groups != 1:
            raise ValueError(f"reward.pattern={pattern!r} must have one group, which is the verdict")

    def metrics(self) -> dict[str, float]:
        """``unanswered`` and ``parse_failures`` as shares of the questions, ``unscored`` of the responses."""
        responses, asked = self._counts["responses"], self._counts.pop("questions", 0)
        counts = super().metrics()
        for name in ("unanswered", "parse_failures"):
            counts[name] = counts.get(name, 0.0) * responses / asked if asked else 0.0
        return counts

    def _answers(self, contexts: Sequence[Context], round_: int = 0) -> list[str | None]:
        """Get the judge's replies in one call, even without questions, since sharded weights are gathered together.

        Raises:
            ValueError: the data lacks what the question shows.
        """
        system = [{"role": "system", "content": self._system}] if self._system else []
        texts = [self.rendered(context) for context in contexts]
        self.count(questions=len(texts))
        questions = [[*system, {"role": "user", "content": text}] for text in texts]
        writing = self._writing
        asked = self._ask().ask_each(
            questions, max_tokens=writing.max_tokens, temperature=writing.temperature, seed=writing.seed + round_
        )
        return list(asked)

    def _ask(self) -> Ask:
        if callable(self._judge) and not isinstance(self._judge, Ask):
            self._judge = self._judge()
        return asker(self._judge, self._tokenizer, self.policy, f"reward {self.name!r}")


@former_arguments("rlhf_lightning.rewards.RatingJudge")
class RatingJudge(_Judge):
    """The rating that a language model gives a response, on its scale or brought to [0, 1].

    Counted: ``unanswered``, the judge gave no answer at all, and ``parse_failures``, no rating in its range could be
    read, as shares of the questions; ``unscored``, share of the responses without a score; with ``histogram`` also
    ``rating/<n>``, the shares of the ratings that could be read, rounded to whole numbers.

    Source: single-answer grading of "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv:2306.05685; the
    policy as its own judge: "Self-Rewarding Language Models", arXiv:2401.10020, which takes the mean of 3 judgments.

    Args:
        tokenizer: the policy's.
        judge: a client of a server (:class:`rlhf_lightning.rollout.ChatClient`), a partial that makes one, or whatever
            has ``ask_each``; None: the policy that is trained.
        question: a template with ``{{ item.prompt }}``, ``{{ sample.output_text }}`` and columns of the data,
            ``{{ item.answer }}``, or a name of ``rewards.questions``; None: a plain one.
        rating: what a rating is and how many are a score; the options of ``RatingOptions`` by name.
        pattern: regular expression with one group that finds the rating; None: the last JSON object with ``score``,
            else the last number.
        system: of the conversation with the judge.
        writing: how it writes; the options of ``WritingOptions`` by name.
        name: what the scores are logged under.

    Raises:
        ValueError: an empty range, several judgments that would be the same, a broken template or pattern.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        judge: Any = None,
        question: str | None = None,
        rating: RatingOptions | Mapping[str, Any] | None = None,
        pattern: str | None = None,
        system: str | None = None,
        writing: WritingOptions | Mapping[str, Any] | None = None,
        name: str = "rating",
    ) -> None:
        self.rating = value_object(RatingOptions, rating, RatingOptions.node)
        text = question if question is not None else RATE.format(low=self.rating.low, high=self.rating.high)
        super().__init__(tokenizer, judge, text, system, pattern, writing, name, ("prompt",))
        if self.rating.judgments > 1 and self._writing.temperature <= 0:
            raise ValueError(
                f"reward.rating.judgments={self.rating.judgments} would be the same at temperature 0: set "
                "reward.writing.temperature"
            )
        self._ratings = Counter[int]() if self.rating.histogram else None

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        contexts = [self._context(group, ids) for group in groups for ids in group.responses]
        ratings_of_contexts: list[list[float]] = [[] for _ in contexts]
        for round_ in range(self.rating.judgments):
            for ratings, answer in zip(ratings_of_contexts, self._answers(contexts, round_), strict=True):
                value = None if answer is None else self._read(answer)
                ratings += [] if value is None else [value]
                if value is not None and self._ratings is not None:
                    self._ratings[round(value)] += 1
                self.count(unanswered=answer is None, parse_failures=answer is not None and value is None)
        scores = [self._mean(ratings) for ratings in ratings_of_contexts]
        self.count(responses=len(contexts), unscored=sum(score is None for score in scores))
        each = iter(scores)
        return [[next(each) for _ in group.samples] for group in groups]

    def metrics(self) -> dict[str, float]:
        """Counts since the last call."""
        ratings = self._ratings or Counter()
        shares = {f"rating/{rating}": count / ratings.total() for rating, count in sorted(ratings.items())}
        ratings.clear()
        return super().metrics() | shares

    def _context(self, group: SampleGroup, ids: list[int]) -> Context:
        text = self.texts.text(ids)
        return Context({"output_text": text}, {**group.columns, "prompt": self.prompt(group)}, group.row)

    def _read(self, answer: str) -> float | None:
        return read_rating(answer, self.rating.low, self.rating.high, pattern=self.pattern)

    def _mean(self, ratings: Sequence[float]) -> float | None:
        if len(ratings) < self.rating.least_read:
            return None
        mean, low = sum(ratings) / len(ratings), self.rating.low
        return (mean - low) / (self.rating.high - low) if self.rating.scaled else mean


@former_arguments("rlhf_lightning.rewards.ComparisonJudge")
class ComparisonJudge(_Judge):
    r"""Share of the other responses of its group that a response beats, in [0, 1], each pair shown in both orders.

    .. math:: R(y_i) = \frac{1}{|P_i|}\sum_{j \in P_i} \tfrac12\big(w(y_i, y_j) + 1 - w(y_j, y_i)\big)

    where w(a, b) is 1, 1/2 or 0 as the judge, shown a first, prefers a, neither, or b, and P_i are the others for which
    both orders gave a verdict: one order alone would reward a place. A response without any has no score. Equal
    responses tie and are not asked about. A group of n is at most n (n - 1) questions.

    Counted: ``unanswered``, ``parse_failures``, ``unscored``; and over the pairs with two verdicts ``consistent``, both
    orders agree, and ``first``, share of the verdicts for what was shown first (1/2: no bias).

    Source: pairwise comparison with swapped positions of arXiv:2306.05685, sections 3.1 and 3.4; there a pair whose
    orders disagree is a tie, which the mean of the two orders gives too.

    Args:
        tokenizer: the policy's.
        judge: as of :class:`RatingJudge`.
        question: a template with ``{{ item.prompt }}``, ``{{ item.response_a }}``, ``{{ item.response_b }}`` and
            columns of the data; None: a plain one.
        pattern: regular expression with one group that gives ``A``, ``B`` or ``C`` (a tie); None: the last of them in
            double brackets, else the only one that occurs.
        system: of the conversation with the judge.
        writing: how it writes; the options of ``WritingOptions`` by name.
        name: what the scores are logged under.

    Raises:
        ValueError: a broken template or pattern.
    """

    smallest_group = 2  #: responses that can be compared

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        judge: Any = None,
        question: str | None = None,
        pattern: str | None = None,
        system: str | None = None,
        writing: WritingOptions | Mapping[str, Any] | None = None,
        name: str = "comparison",
    ) -> None:
        fields = ("prompt", "response_a", "response_b")
        text = COMPARE if question is None else question
        super().__init__(tokenizer, judge, text, system, pattern, writing, name, fields)
        self._verdicts = [0, 0, 0.0]  # pairs with two verdicts, of these consistent, verdicts for the first

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`.

        Raises:
            ValueError: a group of one response.
        """
        return [mean_wins(matrix) for matrix in self.win_matrix(groups)]

    def win_matrix(self, groups: Sequence[SampleGroup]) -> list[WinMatrix]:
        """See :func:`~rlhf_lightning.rewards.win_matrices`.

        Raises:
            ValueError: a group of one response.
        """
        texts = [[self.texts.text(ids) for ids in group.responses] for group in groups]
        pairs = [
            (number, first, second)
            for number, group in enumerate(texts)
            for first, second in combinations(range(len(group)), 2)
        ]
        asked = [(g, i, j) for g, i, j in pairs if texts[g][i] != texts[g][j]]
        verdicts = dict(zip(asked, self._preferences(groups, texts, asked), strict=True))
        matrices = [
            matrix_of(len(group), [(i, j, verdicts.get((g, i, j), 0.5)) for g, i, j in pairs if g == number])
            for number, group in enumerate(texts)
        ]
        scores = [score for matrix in matrices for score in mean_wins(matrix)]
        self.count(responses=len(scores), unscored=sum(score is None for score in scores))
        return matrices

    def _preferences(
        self, groups: Sequence[SampleGroup], texts: Sequence[Sequence[str]], pairs: Sequence[tuple[int, int, int]]
    ) -> list[float | None]:
        """Share of the two orders that prefers the first of each pair; None where one of them gave no verdict."""
        for group in groups:
            if len(group.samples) == 1:
                raise ValueError(
                    f"reward {self.name!r} compares the responses to a prompt, and there is one "
                    f"({group.row or group.index}); set method.rollout.group_size to 2 or more"
                )
        orders = [order for g, i, j in pairs for order in ((g, i, j), (g, j, i))]
        contexts = [self._context(groups[g], texts[g][first], texts[g][second]) for g, first, second in orders]
        shares = [self._share(answer) for answer in self._answers(contexts)]
        return [self._both(first, second) for first, second in zip(shares[::2], shares[1::2], strict=True)]

    def _context(self, group: SampleGroup, first: str, second: str) -> Context:
        shown = {"prompt": self.prompt(group), "response_a": first, "response_b": second}
        return Context({}, {**group.columns, **shown}, group.row)

    def _share(self, answer: str | None) -> float | None:
        """1 for the response shown first, 0 for the second, 1/2 for a tie."""
        verdict = None if answer is None else choice(answer, ("A", "B", _TIE), pattern=self.pattern)
        self.count(unanswered=answer is None, parse_failures=answer is not None and verdict is None)
        return None if verdict is None else {"A": 1.0, "B": 0.0}.get(verdict, 0.5)

    def _both(self, first: float | None, second: float | None) -> float | None:
        if first is None or second is None:
            return None
        self._verdicts[0] += 1
        self._verdicts[1] += first == 1 - second
        self._verdicts[2] += (first + second) / 2
        return (first + 1 - second) / 2

    def metrics(self) -> dict[str, float]:
        """Counts since the last call."""
        pairs, consistent, first = self._verdicts
        self._verdicts = [0, 0, 0.0]
        about = {"consistent": consistent / pairs, "first": first / pairs} if pairs else {}
        return super().metrics() | about
