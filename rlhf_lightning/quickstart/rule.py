"""The quickstart's judge: a rule that anyone can read and check, no model.

A response scores for following the question's request (one or two sentences, few words) and for a kind tone:

===========  =======================================================================================
brevity      1 for one or two sentences of 8 to 30 words in all; 0 with more than four sentences or 70
             words; linear in between
reader       0.5 when it speaks to the reader ("you", "your")
kindness     0.5 when it has a kind or encouraging word (``KIND_WORDS``)
repetition   minus the share of repeated three-word sequences
===========  =======================================================================================

The score lies between -1 and 2. It ignores whether the response is true: its purpose is a preference that can be
measured exactly.
"""

from __future__ import annotations

import re

KIND_WORDS = frozenset(
    [
        "bright",
        "calm",
        "cheerful",
        "comfort",
        "comfortable",
        "comforting",
        "confident",
        "congratulations",
        "delicious",
        "delight",
        "delightful",
        "encourage",
        "enjoy",
        "enjoyable",
        "exciting",
        "favorite",
        "friendly",
        "fun",
        "gentle",
        "gently",
        "glad",
        "great",
        "happiness",
        "happy",
        "hope",
        "joy",
        "joyful",
        "kind",
        "kindness",
        "love",
        "lovely",
        "luck",
        "nice",
        "peace",
        "peaceful",
        "pleasant",
        "proud",
        "relax",
        "relaxed",
        "relaxing",
        "thank",
        "thanks",
        "warm",
        "welcome",
        "wonderful",
    ]
)
FEW_WORDS, FULL_WORDS, MANY_WORDS = 8, 30, 70
FULL_SENTENCES, MANY_SENTENCES = 2, 4


def _falling(value: float, full: float, none: float) -> float:
    """Linear ramp: 1 up to ``full``, 0 from ``none`` on."""
    return min(1.0, max(0.0, (none - value) / (none - full)))


def brevity(text: str) -> float:
    """Score for brevity: 1 for one or two short sentences, falling to 0 for long responses and few words."""
    words = len(re.findall(r"[\w']+", text))
    sentences = len(re.findall(r"[.!?]+(?=\s|$)", text)) or MANY_SENTENCES
    short = _falling(words, FULL_WORDS, MANY_WORDS) * _falling(sentences, FULL_SENTENCES, MANY_SENTENCES + 1)
    return short * min(1.0, words / FEW_WORDS)


def repetition(text: str) -> float:
    """Share of three-word sequences that occurred before, in [0, 1]."""
    words = re.findall(r"[\w']+", text.lower())
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def score(text: str) -> float:
    """Score of a response by the rule, in [-1, 2]; higher is better."""
    words = set(re.findall(r"[\w']+", text.lower()))
    reader = 0.5 if words & {"you", "your", "you're", "you'll", "yourself"} else 0.0
    kindness = 0.5 if words & KIND_WORDS else 0.0
    return brevity(text) + reader + kindness - repetition(text)
