"""Rules about texts: the right answer, a pattern, a format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.rewards.answers import Extractor, accepted, normalized
from rlhf_lightning.rewards.text_reward import TextReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ExactMatch(TextReward):
    """1 where the answer in the response is the one in the data, else 0.

    Args:
        tokenizer: of whoever made the token ids.
        column: of the data, with the answer or a list of accepted ones (of GSM8K's ``... #### 72``, what stands behind
            the mark); a row where it is null has no score.
        extract: where the answer stands in the response: ``whole``, ``final``, ``boxed``, ``answer_tag``,
            ``last_number`` (:mod:`rlhf_lightning.rewards.answers`), or a function
            ``f(prompt, response, **columns) -> str | None``. Without an answer the score is 0; ``no_answer`` counts it.
        normalize: compare normalised spellings (:func:`~rlhf_lightning.rewards.answers.normalized`), else the texts
            themselves, without the space around them.
        name: what its numbers are logged under.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        column: str = "answer",
        extract: str | Callable[..., str | None] = "whole",
        normalize: bool = True,
        name: str = "exact_match",
    ) -> None:
        super().__init__(tokenizer, name)
        self.answer, self.extract, self.normalize = column, Extractor(extract), normalize
        self.required = (column,)

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """See :class:`~rlhf_lightning.rewards.TextReward`."""
        accepted_answers = accepted(self.column(columns, self.answer))
        if not accepted_answers:
            return None
        answer = self.extract(prompt, response, columns)
        if not answer:
            self.count(no_answer=1)
            return 0.0
        spell = normalized if self.normalize else str.strip
        return float(spell(answer) in {spell(gold) for gold in accepted_answers})


class RegexMatch(TextReward):
    """1 where a pattern is found in the response, else 0.

    Args:
        tokenizer: of whoever made the token ids.
        pattern: regular expression of Python's ``re``; ``.`` matches line ends as well. It is yours to keep it from
            backtracking without end.
        column: of the data, with a pattern for each row instead; a row where it is null has no score.
        full: the pattern must match the whole response.
        ignore_case: whether case makes no difference.
        name: what its numbers are logged under.

    Raises:
        ValueError: neither or both of ``pattern`` and ``column``, or no regular expression.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        pattern: str | None = None,
        column: str | None = None,
        full: bool = False,
        ignore_case: bool = False,
        name: str = "regex",
    ) -> None:
        if (pattern is None) == (column is None):
            raise ValueError("reward=regex needs either reward.pattern=... or reward.column=..., not both")
        super().__init__(tokenizer, name)
        self.flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
        self.pattern = None if pattern is None else self._compiled(pattern)
        self.from_column, self.full = column, full
        self.required = () if column is None else (column,)

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """See :class:`~rlhf_lightning.rewards.TextReward`."""
        pattern = self.pattern
        if pattern is None:
            text = self.column(columns, str(self.from_column))
            if text is None:
                return None
            pattern = self._compiled(str(text))
        match = pattern.fullmatch(response) if self.full else pattern.search(response)
        return float(match is not None)

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern, self.flags)
        except re.error as error:
            raise ValueError(f"reward {self.name!r}: {pattern!r} is no regular expression: {error}") from error


class FormatReward(TextReward):
    """1 where the response is one text in each of the tags, in their order, with nothing but space around them.

    ``<think>...</think><answer>...</answer>`` with the default. A tag that is opened twice, or empty, is wrong.

    Source: the format reward of "DeepSeek-R1", arXiv:2501.12948, section 2.2.2, which names the two tags and gives no
    rule; the rule is ours.

    Args:
        tokenizer: of whoever made the token ids.
        tags: names of the tags, in order.
        opened: the chat template ends with the first tag, so the response begins inside it.
        partial: a response that is not in the format gets half the share of the tags that it has exactly once, opened
            and closed, instead of 0.
        name: what its numbers are logged under.

    Raises:
        ValueError: no tags, or a tag twice.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        tags: Sequence[str] = ("think", "answer"),
        opened: bool = False,
        partial: bool = False,
        name: str = "format",
    ) -> None:
        if not tags or len(set(tags)) < len(tags):
            raise ValueError(f"reward.tags={list(tags)} must name at least one tag, and none twice")
        super().__init__(tokenizer, name)
        self.tags, self.opened, self.partial = tuple(tags), opened, partial
        parts = [rf"<{re.escape(tag)}>(.+)</{re.escape(tag)}>" for tag in self.tags]
        self._format = re.compile(r"\s*".join(parts), re.DOTALL)

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """See :class:`~rlhf_lightning.rewards.TextReward`."""
        text = (f"<{self.tags[0]}>" if self.opened else "") + response.strip()
        once = [text.count(f"<{tag}>") == 1 == text.count(f"</{tag}>") for tag in self.tags]
        match = self._format.fullmatch(text) if all(once) else None
        if match is not None and all(part.strip() for part in match.groups()):
            return 1.0
        return 0.5 * sum(once) / len(once) if self.partial else 0.0
