"""Rewards that read texts: decoding, columns of the data, and counts of what could not be judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.calling import missing_column
from rlhf_lightning.rewards.texts import Texts
from rlhf_lightning.types import SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextReward:
    """A reward of one response's text, which a subclass computes in :meth:`score`.

    Args:
        tokenizer: of whoever made the token ids.
        name: what its numbers are logged under.

    Raises:
        ValueError: no tokenizer.
    """

    #: Columns of the data that the reward cannot do without.
    required: tuple[str, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
        if tokenizer is None:
            raise ValueError(f"reward {name!r} reads texts: give it the policy's tokenizer, tokenizer=...")
        self.name = name
        self.texts = Texts(tokenizer)
        self._counts: Counter[str] = Counter()

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return [self.group(group) for group in groups]

    def group(self, group: SampleGroup) -> list[float | None]:
        """A score for each response of one group."""
        prompt = self.prompt(group)
        scores = [self.score(prompt, self.texts.text(ids), group.columns) for ids in group.responses]
        self.count(responses=len(scores), unscored=sum(score is None for score in scores))
        return scores

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """The score of one response.

        Args:
            prompt: the user's text, without chat markup if there was one turn.
            response: text of the response, without special tokens.
            columns: of the prompt's row in the data.

        Returns:
            A number, or None if there is no score.
        """
        raise NotImplementedError

    @property
    def reads_columns(self) -> bool:
        """True if any column but the prompt is read."""
        return bool(self.required)

    def prompt(self, group: SampleGroup) -> str:
        """The prompt's text: the data's own where it is one text, else what the tokens say."""
        data_text = group.columns.get("prompt")
        return data_text if isinstance(data_text, str) else self.texts.content(group.prompt)

    def column(self, columns: Mapping[str, Any], name: str) -> Any:
        """A column of the prompt's row.

        Raises:
            ValueError: the data has no such column; the message lists those that it has.
        """
        if name not in columns:
            raise missing_column(self.name, name, columns)
        return columns[name]

    def check_columns(self, columns: Collection[str]) -> None:
        """Hold what the reward reads against the columns of the data, before anything else is loaded.

        Raises:
            ValueError: a column is missing; the message names it and those that there are.
        """
        for name in self.required:
            if name not in columns:
                raise missing_column(self.name, name, columns)

    def count(self, **numbers: float) -> None:
        """Add to what :meth:`metrics` gives."""
        self._counts.update(numbers)  # floats too

    def metrics(self) -> dict[str, float]:
        """Shares of the responses since the last call: ``unscored``, and whatever else the reward counted."""
        counts, self._counts = self._counts, Counter()
        responses = counts.pop("responses", 0)
        return {name: count / responses for name, count in sorted(counts.items())} if responses else {}
