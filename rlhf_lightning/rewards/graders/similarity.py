"""Similarity of two texts, in [0, 1]."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping

#: Longest run of words that BLEU and GLEU compare.
ORDER = 4
_WORDS = re.compile(r"\w+|[^\w\s]")


def fuzzy_match(text: str, reference: str) -> float:
    """Twice the longest common subsequence of characters over the characters of both: rapidfuzz's ``ratio`` / 100."""
    from rapidfuzz import fuzz

    return float(fuzz.ratio(text, reference)) / 100


def words(text: str) -> list[str]:
    """Words, and each other printing character by itself; case counts."""
    return _WORDS.findall(text)


def bleu(text: str, reference: str) -> float:
    r"""BLEU of one sentence: geometric mean of n-gram precisions, times a penalty for being short.

    .. math:: \min(1, e^{1 - r/c}) \prod_{n=1}^{N} p_n^{1/N}

    with N = 4, or the length of a shorter text. A precision of 0 is smoothed to 1/2, 1/4, ... of one match, so that
    a text without a common run of four words still earns something.

    Source: Papineni et al., "Bleu", ACL 2002; smoothing "exp" and effective order as in sacrebleu's ``sentence_bleu``.
    """
    words_of_text, words_of_reference = words(text), words(reference)
    if not words_of_text or not words_of_reference:
        return float(words_of_text == words_of_reference)
    order = min(ORDER, len(words_of_text))
    matches = [_common(words_of_text, words_of_reference, n) for n in range(1, order + 1)]
    if not any(matches):
        return 0.0
    logs, penalty = 0.0, 1.0
    for n, matched in enumerate(matches, start=1):
        if not matched:
            penalty /= 2
        logs += math.log((matched or penalty) / (len(words_of_text) - n + 1))
    return math.exp(min(0.0, 1 - len(words_of_reference) / len(words_of_text)) + logs / order)


def gleu(text: str, reference: str) -> float:
    """Google BLEU: the smaller of precision and recall of all runs of one to four words.

    Source: "Google's Neural Machine Translation System", arXiv:1609.08144, section 5.2.
    """
    words_of_text, words_of_reference = words(text), words(reference)
    if not words_of_text or not words_of_reference:
        return float(words_of_text == words_of_reference)
    matched = sum(_common(words_of_text, words_of_reference, n) for n in range(1, ORDER + 1))
    return matched / max(_runs(len(words_of_text)), _runs(len(words_of_reference)))


def rouge(text: str, reference: str, *, key: str) -> float:
    """F-measure of ROUGE as torchmetrics computes it: case and punctuation are left out, no stemming.

    Source: Lin, "ROUGE", ACL 2004.

    Args:
        text: what is judged.
        reference: what it is compared with.
        key: ``rouge1`` ... ``rouge5`` for runs of so many words, ``rougeL`` for the longest common subsequence.
    """
    from torchmetrics.functional.text import rouge_score

    return float(rouge_score(text, reference, rouge_keys=key)[f"{key}_fmeasure"])


def _common(first: list[str], second: list[str], n: int) -> int:
    """Runs of n words that both have, each as often as both have it."""
    return sum((_grams(first, n) & _grams(second, n)).values())


def _grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _runs(length: int) -> int:
    return sum(max(length - n + 1, 0) for n in range(1, ORDER + 1))


#: By the names of OpenAI's graders.
METRICS: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{n}": functools.partial(rouge, key=f"rouge{n}") for n in range(1, 6)},
    "rouge_l": functools.partial(rouge, key="rougeL"),
}
