"""A penalty for saying the same again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rlhf_lightning.rewards.base import Scores
from rlhf_lightning.rewards.texts import Texts
from rlhf_lightning.types import SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RepetitionPenalty:
    r"""Minus the share of a response's n-grams that were there before, from 0 to ``-penalty``.

    .. math:: -p\,\Big(1 - \frac{\text{distinct n-grams}}{\text{n-grams}}\Big)

    Source: the repetition penalty of open-r1 (HuggingFace), after "Demystifying Long Chain-of-Thought Reasoning",
    arXiv:2502.03373, which penalises repeated n-grams token by token.

    Args:
        tokenizer: of whoever made the token ids; needed for words.
        n: length of the n-grams; a response that is shorter than n has no penalty.
        unit: ``word`` (split at spaces, case left out) or ``token``.
        penalty: of a response that consists of repetitions alone, positive.
        name: what its numbers are logged under.

    Raises:
        ValueError: n or the penalty is not positive, an unknown unit, or words without a tokenizer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        n: int = 3,
        unit: Literal["word", "token"] = "word",
        penalty: float = 1.0,
        name: str = "repetition",
    ) -> None:
        if n < 1 or penalty <= 0:
            raise ValueError(f"reward.n={n} must be at least 1 and reward.penalty={penalty} positive")
        if unit not in ("word", "token") or (unit == "word" and tokenizer is None):
            raise ValueError(f"reward.unit={unit!r} must be token, or word, which needs a tokenizer")
        self.n, self.penalty, self.name = n, penalty, name
        self.texts = Texts(tokenizer) if tokenizer is not None and unit == "word" else None

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return [[self._penalty(response) for response in group.responses] for group in groups]

    def _penalty(self, response: list[int]) -> float:
        units: Sequence[str | int] = response if self.texts is None else self.texts.text(response).lower().split()
        grams = [tuple(units[at : at + self.n]) for at in range(len(units) - self.n + 1)]
        return -self.penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0
