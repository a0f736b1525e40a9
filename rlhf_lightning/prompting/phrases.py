"""A proposer without a language model: it edits the best text shown to it, phrase by phrase."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_lightning.ops.streams import stream_seed
from rlhf_lightning.options import Count

#: The texts of a question: OPRO lists them with their scores, the best one last; GEPA shows the one to improve.
_LISTED = re.compile(r"^text:\n(.*)\nscore:\n", re.MULTILINE)
_MARKED = re.compile(r"<TEXT>\n(.*?)\n</TEXT>", re.DOTALL)


@dataclass
class Phrases:
    """Mutation of the best text: a phrase is inserted, removed or replaced by another one.

    It fulfils :class:`~rlhf_lightning.rewards.asking.Ask`, so that a search can run without a language model: in tests,
    in the tiny world, or as a control that shows the value of reading the scores. It uses only its phrases and the best
    text of the question. Each edit is followed by another one with the probability ``temperature / (1 + temperature)``:
    a temperature of 0 makes one edit, a temperature of 1 two on average.

    Args:
        phrases: phrases that texts consist of; a text is split at them, and its other parts are not changed.
        most: maximum phrases of a text.

    Raises:
        ValueError: there are no phrases, or one is empty.
    """

    phrases: Sequence[str]
    most: Count = 8

    def __post_init__(self) -> None:
        """Check the phrases."""
        self.phrases = [str(phrase).strip() for phrase in self.phrases]
        if not all(self.phrases) or not self.phrases:
            raise ValueError("proposer.phrases needs phrases, none of them empty: proposer.phrases=[please,briefly]")
        longest_first = sorted(self.phrases, key=len, reverse=True)
        self._parts = re.compile("|".join(rf"(?<!\S){re.escape(phrase)}(?!\S)" for phrase in longest_first) + r"|\S+")

    def ask_each(
        self, conversations: Sequence[Sequence[Mapping[str, str]]], *, max_tokens: int, temperature: float, seed: int
    ) -> list[str | None]:
        """See :class:`~rlhf_lightning.rewards.asking.Ask`; a reply depends only on its question and the seed."""
        return [self._answer(conversation[-1]["content"], temperature, seed) for conversation in conversations]

    def _answer(self, question: str, temperature: float, seed: int) -> str:
        draw = random.Random(stream_seed("phrases", seed, *question.encode()))
        parts = self._parts.findall(shown_text(question))
        for _ in range(1 + _more_edits(draw, temperature)):
            parts = self._edited(parts, draw)
        return f"<TEXT>{' '.join(parts)}</TEXT>"

    def _edited(self, parts: Sequence[str], draw: random.Random) -> list[str]:
        edits = [name for name, fits in _FITS.items() if fits(len(parts), self.most)]
        edit, phrase = draw.choice(edits), draw.choice(list(self.phrases))
        if edit == "insert":
            at = draw.randrange(len(parts) + 1)
            return [*parts[:at], phrase, *parts[at:]]
        at = draw.randrange(len(parts))
        return [*parts[:at], *([phrase] if edit == "replace" else []), *parts[at + 1 :]]


#: Edits that a text allows, given its number of phrases and the maximum.
_FITS: Mapping[str, Callable[[int, int], bool]] = {
    "insert": lambda count, most: count < most,
    "replace": lambda count, most: count > 0,
    "remove": lambda count, most: count > 1,
}


def _more_edits(draw: random.Random, temperature: float) -> int:
    """Draw the number of edits after the first one from a geometric distribution."""
    if temperature <= 0:
        return 0
    return int(math.log(1 - draw.random()) / math.log(temperature / (1 + temperature)))


def shown_text(question: str) -> str:
    """Extract the best text of a search's question: the last one with a score, else the one between marks, else ""."""
    listed = _LISTED.findall(question)
    marked = _MARKED.findall(question)
    return str(listed[-1] if listed else marked[0] if marked else "")
