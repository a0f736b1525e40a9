"""Sentiment by a lexicon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from rlhf_lightning.rewards.text_reward import TextReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = {"compound": "compound", "positive": "pos", "negative": "neg", "neutral": "neu"}


class LexiconSentiment(TextReward):
    """VADER's sentiment of a response: what words, negations, capitals and emoticons say, without a model.

    It stands in for a sentiment classifier where none can be loaded, as in the controlled-sentiment experiment of DPO
    (arXiv:2305.18290, section 6.1).

    Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
    ICWSM 2014, and its package vaderSentiment.

    Args:
        tokenizer: of whoever made the token ids.
        part: ``compound``, from -1 to 1, or the share ``positive``, ``negative`` or ``neutral``, from 0 to 1.
        with_prompt: score the prompt and the response as one text, as for the continuation of a review.
        name: what its numbers are logged under.

    Raises:
        ImportError: vaderSentiment is not installed.
        ValueError: an unknown part.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        part: Literal["compound", "positive", "negative", "neutral"] = "compound",
        with_prompt: bool = False,
        name: str = "sentiment",
    ) -> None:
        if part not in PARTS:
            raise ValueError(f"reward.part={part!r} is none of {', '.join(PARTS)}")
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ImportError("reward=lexicon needs vaderSentiment: pip install 'rlhf-lightning[lexicon]'") from error
        super().__init__(tokenizer, name)
        self.part, self.with_prompt = PARTS[part], with_prompt
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float | None:
        """See :class:`~rlhf_lightning.rewards.TextReward`; an empty text is neutral, 0."""
        text = prompt + response if self.with_prompt else response
        return float(self._analyzer.polarity_scores(text)[self.part])
