"""Form of prompts that a transform made, for generation: their beginning, and the text that ends a response."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PromptForm:
    """The form of prompts that no chat template ends: a base model ends its response with text, not with a token.

    Attributes:
        start: constant text that every prompt begins with; its keys and values are computed once.
        stops: texts that end a response and are no part of it.
        trailing: text that closes a response in front of a stop or of EOS, such as a code fence; no part of it either.
        tokenizer: of the ids; a form with any text needs one.
    """

    start: str = ""
    stops: tuple[str, ...] = ()
    trailing: str = ""
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def ended(self, text: str) -> bool:
        """Return whether a text holds a stop."""
        return any(stop in text for stop in self.stops)

    def length(self, text: str) -> int:
        """Characters of a text that are the response: up to the first stop, without what closes it there.

        A response that neither a stop nor ``trailing`` ends is the whole text.
        """
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        body = text[: min(ends)].rstrip() if ends else text
        if self.trailing and body.rstrip().endswith(self.trailing):
            body = body.rstrip().removesuffix(self.trailing).rstrip()
        return len(body)

    def kept(self, ids: Sequence[int]) -> int:
        """Tokens that the response is cut to, at least one: the fewest whose text is all of it."""
        decode = self.tokenizer.decode
        text = decode(ids, skip_special_tokens=True)
        length = self.length(text)
        if length == len(text):
            return len(ids)
        tokens = range(len(ids) + 1)
        return max(1, bisect_left(tokens, length, key=lambda n: len(decode(ids[:n], skip_special_tokens=True))))

    def last_ended(self, ids: Sequence[int], window: int) -> bool:
        """Return whether the text of the last ``window`` tokens holds a stop."""
        return bool(self.stops) and self.ended(self.tokenizer.decode(ids[-window:], skip_special_tokens=True))

    def common_tokens(self, prompts: Sequence[Sequence[int]]) -> int:
        """Tokens that all prompts have of the constant start, a BOS in front of it included; each keeps one more.

        A function of the start and of the tokens that it shares with each prompt, not of which prompts come together.
        """
        if not self.start or not prompts:
            return 0
        ids = list(self.tokenizer(self.start, add_special_tokens=False)["input_ids"])
        if (bos := self.tokenizer.bos_token_id) is not None and prompts[0][0] == bos and ids[:1] != [bos]:
            ids = [bos, *ids]
        return min(min(_common(ids, prompt), len(prompt) - 1) for prompt in prompts)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
