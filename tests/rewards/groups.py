"""Groups of texts for rewards that read texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.models.loading.tokenizers import byte_tokenizer
from rlhf_lightning.types import SampleGroup, sample_groups

TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def group(responses: Sequence[str], prompt: str = "Why?", **columns: Any) -> SampleGroup:
    """One prompt with responses that end with EOS."""
    eos = TOKENIZER.eos_token_id
    made = sample_groups([ids(prompt)], [[[*ids(text), eos] for text in responses]], [columns])
    return made[0]


def groups(responses: Sequence[Sequence[str]], columns: Sequence[Mapping[str, Any]] = ()) -> list[SampleGroup]:
    rows = columns or [{}] * len(responses)
    return [group(texts, **row) for texts, row in zip(responses, rows, strict=True)]
