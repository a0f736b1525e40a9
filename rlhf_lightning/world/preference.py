"""Preferences between responses of the tiny world: by gold reward, by an erring labeller, or cyclic."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist

from rlhf_lightning.world.gold import Gold
from rlhf_lightning.world.grammar import Prompt

#: Each style beats the next one, and the last one beats the first.
STYLES = ("polite", "plain", "rude")


def win(reward: float, other: float) -> float:
    """Probability that a response beats another one by the Bradley-Terry model of their gold rewards, in points."""
    return 1 / (1 + math.exp(other - reward))


def label(prompt: Prompt, words: Sequence[str], gold: float, error: float) -> float:
    """Score by an erring labeller, in points: always the same for the same response.

    Args:
        prompt: prompt of the response.
        words: words of the response, without its end.
        gold: gold reward of the response, in points.
        error: standard deviation of the labeller's normal error, in points.
    """
    if not error:
        return gold
    text = f"{prompt.text}\n{' '.join(words)}"
    drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
    return gold + error * NormalDist().inv_cdf((drawn + 0.5) / 2**48)


def style(gold: Gold) -> str | None:
    """Style of a response, one of :data:`STYLES`; None if it is not a sentence of the grammar."""
    if gold.parsed is None:
        return None
    return {1.0: "polite", 0.0: "plain", -1.0: "rude"}[gold.features["polite"] or 0.0]


def cyclic_win(first: str | None, second: str | None, strength: float) -> float:
    """Probability that a response of one style beats one of another: rock, paper, scissors.

    Args:
        first: a style; None, no sentence, loses against every style.
        second: of the other response.
        strength: probability that the better style wins; equal styles tie, 1/2.
    """
    if first == second:
        return 0.5
    if first is None or second is None:
        return 1 - strength if first is None else strength
    return strength if (STYLES.index(second) - STYLES.index(first)) % len(STYLES) == 1 else 1 - strength


def exploitability(styles: Sequence[str | None], strength: float) -> float:
    """Win rate above one half of the best pure style against the responses, from 0 (not exploitable) to 1/2.

    Args:
        styles: styles of a policy's responses.
        strength: see :func:`cyclic_win`.
    """
    return max(sum(cyclic_win(pure, one, strength) for one in styles) / len(styles) for pure in STYLES) - 0.5
