"""Numbers and choices read from a judge's text."""

from __future__ import annotations

import json
import math
import re

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
#: Maximum behind a rating, as in 7/10.
_SCALE = re.compile(r"\s*(?:/|out of)\s*\d+(?:\.\d+)?")
_OBJECT = re.compile(r"\{[^{}]*\}")


def rating(text: str, low: float, high: float, *, key: str = "score", pattern: str | None = None) -> float | None:
    """The rating that a text states, or None.

    In this order: what ``pattern`` finds, and then nothing else is tried; the last JSON object with ``key``; the last
    number of the text. ``7/10`` is 7. A number outside the range is no rating: it is not clipped, since a judge that
    leaves its scale has not understood the question.

    Args:
        text: of the judge.
        low: least rating.
        high: greatest rating.
        key: key of a JSON reply.
        pattern: regular expression with one group.
    """
    if pattern is not None:
        matches = re.findall(pattern, text)
        return _within(matches[-1] if matches else None, low, high)
    for written in reversed(_OBJECT.findall(text)):
        try:
            value = json.loads(written)
        except (ValueError, RecursionError):
            continue
        if key in value:
            return _within(value[key], low, high)
    numbers = [match[0] for match in _NUMBER.finditer(_SCALE.sub("", text))]
    return _within(numbers[-1] if numbers else None, low, high)


def _within(value: object, low: float, high: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and low <= number <= high else None


def choice(text: str, options: tuple[str, ...], *, pattern: str | None = None) -> str | None:
    """Find the word that a text chooses, or None.

    Args:
        text: of the judge.
        options: the words; case counts, so that ``A`` is not the article.
        pattern: regular expression with one group that gives one of them; None: the last of the words in double square
            brackets (``[[A]]``), else the only one of them that occurs as a word of its own.
    """
    if pattern is not None:
        matches = re.findall(pattern, text)
        return matches[-1] if matches and matches[-1] in options else None
    marked = [word for word in re.findall(r"\[\[\s*(\w+)\s*\]\]", text) if word in options]
    if marked:
        return str(marked[-1])
    present = [word for word in options if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    return present[0] if len(present) == 1 else None
