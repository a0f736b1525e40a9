r"""The answer in a response: the phrase, box, tag or number that states it, and one spelling for equal ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlhf_lightning.rewards.calling import TextFunction

_MINERVA = re.compile(r"final answer is(.*?)\.?\s*I hope", re.DOTALL | re.IGNORECASE)
_PHRASES = ("he answer is", "final answer is", "答案是")
_COLONS = ":\uff1a"
#: A sentence ends at a full stop that no digit follows, or at a line's end.
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")
#: A minus between two numbers is no sign.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d+(?:\.\d+)?|(?<!\d)\.\d+)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_WRAPPED = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_DECORATION = re.compile(r"\\(?:left|right|displaystyle|!|,|;|:|quad|qquad)(?![a-zA-Z])|~")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_DECIMALS = re.compile(r"(?<![\d.])(-?)(\d*)\.(\d+)(?![\d.])")


def final_answer(text: str) -> str:
    r"""The answer of a mathematical solution, "" where there is none.

    The first of these that is there: "Final Answer: The final answer is ... I hope it is correct" (Minerva's phrase);
    the last ``\boxed{}`` whose braces close; what follows the last "the answer is", "final answer is" or "答案是", up
    to the end of the sentence; the last number.

    Source: the order of TTRL (arXiv:2504.16084), which took it from the evaluation code of Qwen2.5-Math.
    Differences: a box that is never closed is passed over, where that code takes what stands behind it; a phrase's
    answer ends with its sentence.
    """
    for find in (_minerva, boxed, _after_phrase, last_number):
        if (answer := _stripped(find(text) or "")) != "":
            return answer
    return ""


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``, with matched braces; None if no box closes."""
    boxes = list(_boxes(text))
    return boxes[-1] if boxes else None


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands separators; None where there is none."""
    numbers = _NUMBER.findall(_THOUSANDS.sub("", text))
    return numbers[-1] if numbers else None


def answer_tag(text: str) -> str | None:
    """Text between the last ``<answer>`` and ``</answer>``; None without them."""
    tagged = _TAG.findall(text)
    return tagged[-1].strip() if tagged else None


def whole(text: str) -> str:
    """The text itself, without the space around it."""
    return text.strip()


#: Ways to find an answer by the names that a yaml uses.
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "whole": whole,
    "final": final_answer,
    "boxed": boxed,
    "answer_tag": answer_tag,
    "last_number": last_number,
}


def normalized(answer: str) -> str:
    r"""One spelling for answers that differ in decoration only.

    Dollar signs and brackets around it, ``\text{}``, spacing commands, ``dfrac``, thousands separators, degree and
    percent signs, a closing full stop, ``5.0`` for ``5``, ``.5`` for ``0.5``, case and spaces make no difference.
    """
    text = _stripped(answer)
    for start, end in _WRAPPED:
        if len(text) > len(start) + len(end) - 1 and text.startswith(start) and text.endswith(end):
            text = text[len(start) : len(text) - len(end)]
    text = re.sub(r"\\[dt]frac", r"\\frac", _TEXT.sub(r"\1", _DECORATION.sub("", text)))
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\?%|\\\$|\$", "", text)
    text = _DECIMALS.sub(_shortest, _THOUSANDS.sub("", text))
    return "".join(_stripped(text).split()).lower()


def accepted(value: Any) -> list[str]:
    """Answers that a column of the data accepts: a text or number, a list of them, or GSM8K's text with ``#### 72``."""
    values = value if isinstance(value, list | tuple) else [value]
    return [str(item).rpartition("####")[2].strip() for item in values if item is not None]


class Extractor:
    """Extraction of the answer from a response.

    Args:
        how: a name of :data:`EXTRACTORS`, or a function ``f(prompt, response, **columns) -> str | None``.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, how: str | Callable[..., str | None]) -> None:
        if isinstance(how, str) and how not in EXTRACTORS:
            raise ValueError(f"reward.extract={how!r} is none of {', '.join(EXTRACTORS)}, and no function")
        self._find = EXTRACTORS[how] if isinstance(how, str) else None
        self._function = None if isinstance(how, str) else TextFunction(how)

    def __call__(self, prompt: str, response: str, columns: Mapping[str, Any]) -> str:
        """The answer, "" where there is none."""
        if self._find is not None:
            return self._find(response) or ""
        assert self._function is not None
        answer = self._function(prompt, response, columns)
        return "" if answer is None else str(answer)


def _minerva(text: str) -> str | None:
    answers = _MINERVA.findall(text)
    return answers[-1] if answers else None


def _after_phrase(text: str) -> str | None:
    for phrase in _PHRASES:
        _, there, rest = text.rpartition(phrase)
        if there:
            return _SENTENCE_END.split(rest.strip(f" \t{_COLONS}"), maxsplit=1)[0]
    return None


def _boxes(text: str) -> Iterator[str]:
    for start in re.finditer(r"\\f?boxed\s*\{", text):
        depth = 1
        for position in range(start.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                yield text[start.end() : position]
                break


def _stripped(text: str) -> str:
    """Without space, and without the ``. : /`` that sentences leave around an answer."""
    return text.strip().lstrip(_COLONS).rstrip(f"./ \n\u3002{_COLONS}").strip()


def _shortest(match: re.Match[str]) -> str:
    sign, whole_part, decimals = match.groups()
    decimals = decimals.rstrip("0")
    return f"{sign}{whole_part.lstrip('0') or '0'}" + (f".{decimals}" if decimals else "")
