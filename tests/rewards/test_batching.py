"""No reward of texts depends on which groups it sees together, in which order, or how often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_lightning.rewards import (
    Composite,
    ExactMatch,
    FormatReward,
    FunctionReward,
    LengthReward,
    LexiconSentiment,
    MajorityVote,
    MathReward,
    OverlongPenalty,
    ReasoningGym,
    RegexMatch,
    RelativeLength,
    RepetitionPenalty,
    SelfConfidence,
)
from rlhf_lightning.types import Sample, SampleGroup
from tests.rewards.groups import TOKENIZER, groups

ENTRY = {"dataset": "chain_sum", "entry": {"question": "2 + 3 =", "answer": "5", "metadata": {}}}
TEXTS = [
    ["<think>2 + 3</think><answer>5</answer>", "It is great, it is great: 5.", "no"],
    [r"\boxed{5}"],
    ["<answer>6</answer>", "six or seven"],
]
MADE: dict[str, Callable[[], Any]] = {
    "composite": lambda: Composite(
        TOKENIZER, terms={"right": ExactMatch(TOKENIZER), "short": LengthReward()}, normalize="group"
    ),
    "confidence": SelfConfidence,
    "exact": lambda: ExactMatch(TOKENIZER, extract="final"),
    "format": lambda: FormatReward(TOKENIZER, partial=True),
    "function": lambda: FunctionReward(TOKENIZER, function=lambda prompt, response: float(len(response))),
    "lexicon": lambda: LexiconSentiment(TOKENIZER),
    "majority": lambda: MajorityVote(TOKENIZER),
    "math": lambda: MathReward(TOKENIZER),
    "overlong": lambda: OverlongPenalty(max_length=30, buffer=20),
    "reasoning_gym": lambda: ReasoningGym(TOKENIZER),
    "regex": lambda: RegexMatch(TOKENIZER, pattern=r"\d"),
    "relative": lambda: RelativeLength(TOKENIZER, right=ExactMatch(TOKENIZER, extract="final")),
    "repetition": lambda: RepetitionPenalty(TOKENIZER, n=2),
}


def rows() -> list[SampleGroup]:
    made = groups(TEXTS, [{"answer": "5", **ENTRY}] * 3)
    return [
        SampleGroup(one.prompt, [Sample(s.ids, [-0.1] * len(s.ids), "stop") for s in one.samples], one.columns)
        for one in made
    ]


@pytest.mark.parametrize("name", MADE)
def test_groups_are_scored_alone(name: str):
    reward = MADE[name]()
    together, alone = reward(rows()), [MADE[name]()([row])[0] for row in rows()]
    assert together == alone == reward(rows()[::-1])[::-1]
    assert [len(group) for group in together] == [3, 1, 2]
    assert any(score for group in together for score in group)
    assert reward([]) == []
