"""Responses as ``rlhf generate`` writes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.cli.generate import Responder, Response
from rlhf_lightning.data import DataSpec
from rlhf_lightning.prompting import InContext, Instruction
from tests.helpers.tokenizers import qwen_like


@pytest.mark.parametrize(("template", "expected"), [(None, " and it"), ("a template", "and it")])
def test_a_continuation_keeps_the_space_in_front(template: Any, expected: str):
    """``The film ended`` continues with `` and it``: without the space the written pair would be another text."""
    tokenizer = qwen_like()
    responder = Responder(None, SimpleNamespace(tokenizer=tokenizer, spec=DataSpec()), template, None)  # type: ignore[arg-type]
    ids = [*tokenizer(" and it \n")["input_ids"], tokenizer.eos_token_id]
    assert responder.text(ids) == expected


@pytest.mark.parametrize(
    ("position", "rewritten"),
    [("Q_end", "Why?\nBe brief."), ("Q_begin", "Be brief.\nWhy?"), ("before_Q", None), ("A_begin", None)],
)
def test_rows_have_the_query_that_was_asked(position, rewritten):
    """Fails when what a transform made of a prompt is lost, or what is no query is told as one."""
    transform = Instruction(text="Be brief.", position=position)
    encoder = SimpleNamespace(spec=SimpleNamespace(prompting=transform))
    responder = Responder(None, encoder, None, None)  # type: ignore[arg-type]
    asked = responder.rewritten([{"role": "system", "content": "S"}, {"role": "user", "content": "Why?"}])
    assert asked == rewritten
    row = Response("Because.", 0.5, rewritten=asked).row("Why?")
    assert row.pop("rewritten", None) == rewritten
    assert row == {"prompt": "Why?", "response": "Because.", "finish": "stop", "score": 0.5}


@pytest.mark.parametrize("transform", [None, InContext(examples=0)])
def test_what_writes_whole_prompts_rewrites_none(transform):
    encoder = SimpleNamespace(spec=SimpleNamespace(prompting=transform))
    responder = Responder(None, encoder, None, None)  # type: ignore[arg-type]
    assert responder.rewritten([{"role": "user", "content": "Why?"}]) is None
