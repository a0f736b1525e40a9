"""Answers as ``rlhf generate`` writes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.cli.generate import Answerer
from rlhf_lightning.data import DataSpec
from tests.helpers.tokenizers import qwen_like


@pytest.mark.parametrize(("template", "expected"), [(None, " and it"), ("a template", "and it")])
def test_a_continuation_keeps_the_space_in_front(template: Any, expected: str):
    """``The film ended`` goes on with `` and it``: without the space the written pair would be another text."""
    tokenizer = qwen_like()
    answerer = Answerer(None, SimpleNamespace(tokenizer=tokenizer, spec=DataSpec()), template, None)  # type: ignore[arg-type]
    ids = [*tokenizer(" and it \n")["input_ids"], tokenizer.eos_token_id]
    assert answerer.text(ids) == expected
