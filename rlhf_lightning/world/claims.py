"""What an answer of the tiny world claims, in one canonical text: for votes, and for who checks them."""

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
    """The claim of a right answer: the value of each fact asked for, in the order of the attributes; safe advice."""
    if prompt.topic == "advice":
        return _ADVICE[True]
    return " ".join(grammar.truth(prompt, attribute) for attribute in prompt.asked)


def stated(prompt: Prompt, words: Sequence[str]) -> str | None:
    """What an answer claims, spelt like :func:`truth`; None when it is no sentence that answers the prompt.

    Manners, hedges and the order of the claims do not matter, so answers that agree are equal texts.
    """
    parsed = parse(prompt, words)
    if parsed is None:
        return None
    if prompt.topic == "advice":
        return _ADVICE[bool(parsed.safe)]
    claims = dict(parsed.claims)
    return " ".join(claims.get(attribute, UNSTATED) for attribute in prompt.asked)


def claim(prompt: str, response: str, **columns: Any) -> str | None:
    """The claim of a response as text, for a majority vote: ``rlhf_lightning.world.claim``.

    Args:
        prompt: its text; one of the tiny world's.
        response: its text; an end of sequence and what follows it do not count.
        columns: of the row, not looked at: a vote knows no truth.

    Returns:
        See :func:`stated`.

    Raises:
        ValueError: the prompt is none of the tiny world's.
    """
    known = _prompts().get(" ".join(prompt.split()))
    if known is None:
        raise ValueError(f"claims are read from answers to the tiny world's prompts only, not to {prompt[:60]!r}")
    return stated(known, response.partition(EOS)[0].split())


@functools.cache
def _prompts() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in grammar.prompts()}
