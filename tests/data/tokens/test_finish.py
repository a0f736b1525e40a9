"""Responses that a limit of tokens ended: rows that record it, and what is put behind them."""

from __future__ import annotations

import pytest

from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers import tokenizers
from tests.helpers.rows import Rows
from tests.helpers.tokenizers import EOS, HI

SUPERVISED, PREFERENCE = "supervised", "preference"
TEXT = {"prompt": "a", "response": " hi"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "hi."}]}
CUT = {"finish": "length"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "cc"}


@pytest.mark.parametrize(
    ("style", "row", "kind", "responses"),
    [
        ("llama", {**TEXT, **CUT}, SUPERVISED, [[32, HI]]),
        ("llama", {**TEXT, "finish": "stop"}, SUPERVISED, [[32, HI, EOS]]),
        ("qwen", {**CHAT, **CUT}, SUPERVISED, [[HI, 46]]),
        ("gpt2", {**CHAT, **CUT}, SUPERVISED, [[32, HI, 46]]),
        ("llama", {**PAIR, "finish": ["stop", "length"]}, PREFERENCE, [[98, EOS], [99, 99]]),
        ("llama", {**TEXT, **CUT}, "instruction", [[32, HI]] * 3),
        ("llama", {**TEXT, **CUT, "score": 0.5}, "ranked", [[32, HI], [98, EOS]]),
    ],
    ids=["text", "ended", "chat", "plain-chat", "pair", "instruction", "ranked"],
)
def test_a_response_that_a_length_limit_ended_is_not_closed(style, row, kind, responses):
    """Fails where training would teach the model to stop in the middle of what it was sampled as."""
    rows = [row, {**TEXT, "response": "b", "finish": "stop", "score": 0.1}] if kind == "ranked" else [row]
    result = tokenize(Rows(*rows), tokenizers.STYLES[style](), DataSpec(cache=False), kind)
    assert result.report.problems == []
    assert result[0].responses == responses


def test_how_responses_ended_is_reported_of_each():
    row = {"prompt": "a", "chosen": "b", "rejected": "cc", **CUT}
    report = tokenize(Rows(row), tokenizers.llama_like(), DataSpec(cache=False), PREFERENCE).report
    assert "'finish' must be 'stop' or 'length', or for a pair a list of both" in str(report.problems[0])
    kept = tokenize(Rows(row), tokenizers.llama_like(), DataSpec(cache=False, columns={"finish": "-"}), PREFERENCE)
    assert kept[0].responses == [[98, EOS], [99, 99, EOS]]
