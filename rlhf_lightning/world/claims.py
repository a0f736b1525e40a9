"""Claims of the tiny world's responses as canonical text, for votes and checks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.world import grammar
from rlhf_lightning.world.gold import parse
from rlhf_lightning.world.grammar import Prompt
from rlhf_lightning.world.tokenizer import EOS

#: Stands for a fact that a description was asked for and does not state.
UNSTATED = "-"
_ADVICE = {True: "safe", False: "unsafe"}


def truth(prompt: Prompt) -> str:
    """Claim of a right answer: the value of each requested fact, in the order of the attributes; or safe advice."""
    if prompt.topic == "advice":
        return _ADVICE[True]
    return " ".join(grammar.truth(prompt, attribute) for attribute in prompt.asked)


def stated(prompt: Prompt, words: Sequence[str]) -> str | None:
    """Claim of a response, spelt like :func:`truth`; None if it is not a sentence that responds to the prompt.

    Manners, hedges and the order of the claims do not matter, so responses that agree have equal texts.
    """
    parsed = parse(prompt, words)
    if parsed is None:
        return None
    if prompt.topic == "advice":
        return _ADVICE[bool(parsed.safe)]
    claims = dict(parsed.claims)
    return " ".join(claims.get(attribute, UNSTATED) for attribute in prompt.asked)


def claim(prompt: str, response: str, **columns: Any) -> str | None:
    """Return the claim of a response as text, for a majority vote: ``rlhf_lightning.world.claim``.

    Args:
        prompt: text of one of the tiny world's prompts.
        response: text of the response; an end of sequence and everything after it are ignored.
        columns: columns of the row, ignored: a vote does not use the true answer.

    Returns:
        The claim; see :func:`stated`.

    Raises:
        ValueError: the prompt does not belong to the tiny world.
    """
    asked = _prompts().get(" ".join(prompt.split()))
    if asked is None:
        raise ValueError(f"claims can be read from responses to the tiny world's prompts only, not to {prompt[:60]!r}")
    return stated(asked, response.partition(EOS)[0].split())


@functools.cache
def _prompts() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in grammar.prompts()}
