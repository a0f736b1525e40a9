"""Prompts of plain text cut to where a sentence, or a line, begins and ends.

Text to be continued is often an excerpt that starts and stops anywhere. OpenAI's code of 2019 (lm-human-preferences)
let its queries begin behind the first full stop, held them to a length and ended them at the last full stop within it;
where it summarised articles it only ended them, at a line break. ``data.spec.prompt_start`` and ``prompt_end`` do so
(detail 12 of "The N Implementation Details of RLHF with PPO").

Differences to that code, which compares tokens with the token of ``"."``: here the text decides, so tokenizers that
merge a full stop with what follows it do no harm; question and exclamation marks, other scripts' full stops and the
quotes that close a sentence count; white space behind the cut is left out. Text is never parsed: a point that an
abbreviation ends with ("e.g. this") is taken for a sentence's end, a title without a full stop runs into the sentence
behind it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataError, ProblemKind, RowError
from rlhf_lightning.data.rows.records import Record
from rlhf_lightning.data.spec import DataSpec

#: Quotes and brackets that belong to the sentence they close.
_CLOSERS = "\"'”’»›)\\]}」』）】》〉"  # noqa: RUF001
#: Full stops of scripts that may put no space behind one: CJK, Devanagari, Arabic and Urdu, Ethiopic, Armenian,
#: Burmese, Khmer. The wide point is also a decimal point.
_ALONE, _WIDE = "。｡！？।॥؟۔።։။។", "．"  # noqa: RUF001
#: What ends a unit; the end of the match is where the next one begins.
ENDS: Mapping[str, re.Pattern[str]] = {
    # a point inside 3.14 or example.com ends nothing: white space, or nothing at all, must follow it
    "sentence": re.compile(rf"[.!?…]+[{_CLOSERS}]*(?=\s|\Z)|(?:[{_ALONE}]+|{_WIDE}+(?!\d))[{_CLOSERS}]*"),
    "line": re.compile(r"\n"),
}


def cuts(spec: DataSpec) -> bool:
    """Return whether prompts are cut at all."""
    return (spec.prompt_start, spec.prompt_end) != ("any", "any")


def check_kind(spec: DataSpec, kind: str) -> None:
    """Refuse to cut the prompts of data with responses, which belong to the whole prompt.

    Raises:
        DataError: the method learns from data with responses.
    """
    if cuts(spec) and KINDS[kind].has_responses:
        raise DataError(
            f"{_options(spec)} cuts prompts for the policy to respond to; this method learns from {KINDS[kind].noun}, "
            "whose responses belong to the whole prompt. Set data.spec.prompt_start and data.spec.prompt_end to any"
        )


def cut(record: Record, spec: DataSpec, length: Callable[[str], int]) -> Record:
    """A prompt within its boundaries and, where it ends at one, within the length limit.

    First the text before the first boundary is removed, as in OpenAI's code, unless nothing would be left because the
    only boundary is the end of the text. Then the text ends at the last boundary within the limits
    ``max_prompt_length`` and ``max_length``.

    Args:
        record: as the format gave it; its prompt is text.
        spec: has the boundaries of prompts, and the limits.
        length: tokens of a prompt, a BOS included.

    Returns:
        The record with the cut prompt, and in ``cut`` the number of characters that it lost.

    Raises:
        RowError: the prompt is a conversation, has no boundary, or none within the limit.
    """
    if not cuts(spec):
        return record
    if not isinstance(record.prompt, str):
        raise RowError(ProblemKind.TYPE, f"the prompt is a conversation, but {_options(spec)} cuts plain text")
    text = record.prompt
    if spec.prompt_start != "any":
        text = _begun(text, spec.prompt_start)
    if spec.prompt_end != "any":
        text = _ended(text, spec, length)
    return replace(record, prompt=text, cut=len(record.prompt) - len(text))


def _options(spec: DataSpec) -> str:
    """The options that cut, as people set them."""
    fields = {"prompt_start": spec.prompt_start, "prompt_end": spec.prompt_end}
    return " ".join(f"data.spec.{name}={value}" for name, value in fields.items() if value != "any")


def _begun(text: str, unit: str) -> str:
    """The text behind its first boundary; all of it when nothing is there."""
    first = ENDS[unit].search(text)
    if first is None:
        raise RowError(
            ProblemKind.NO_BOUNDARY, f"no {unit} ends in its {len(text)} characters, so none begins behind one"
        )
    behind = text[first.end() :].lstrip("\r\n" if unit == "line" else None)  # a line keeps its indentation
    return behind if behind.strip() else text


def _ended(text: str, spec: DataSpec, length: Callable[[str], int]) -> str:
    """The text up to its last boundary within the limits."""
    unit = spec.prompt_end
    blank = len(text) - len(text.lstrip())  # what ends in there is empty
    ends = [match.end() for match in ENDS[unit].finditer(text) if match.end() > blank]
    if not ends:
        raise RowError(
            ProblemKind.NO_BOUNDARY, f"no {unit} ends in the {len(text)} characters from where the prompt begins"
        )
    limits = {name: getattr(spec, name) for name in ("max_prompt_length", "max_length")}
    limit, name = min(((value, name) for name, value in limits.items() if value is not None), default=(None, ""))
    if limit is None:
        return text[: ends[-1]]
    last = _last(len(ends), lambda at: length(text[: ends[at]]) <= limit)
    if last < 0:
        raise RowError(
            ProblemKind.NO_BOUNDARY,
            f"its first {unit} has {length(text[: ends[0]])} tokens, over data.spec.{name}={limit}",
        )
    return text[: ends[last]]


def _last(count: int, fits: Callable[[int], bool]) -> int:
    """The last of ``count`` growing candidates that fits, -1 when none does.

    Doubling first, then halving: however long the text, nothing much longer than the limit is ever tokenised.
    """
    good, tried = -1, 0
    while tried < count and fits(tried):
        good, tried = tried, 2 * tried + 1
    bad = min(tried, count)
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good
