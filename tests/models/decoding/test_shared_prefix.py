"""A constant beginning of prompts computed once, and texts that end responses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlhf_lightning.models.decoding.generation import sample
from rlhf_lightning.models.decoding.shared_prefix import shared_prefix
from rlhf_lightning.types import PromptForm, Sampling
from tests.helpers.tokenizers import qwen_like

START = "a constant beginning of forty letters or more "
SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 257,
    "bos_token_id": None,
}
TOKENIZER = qwen_like()
PROMPTS = [TOKENIZER(START + text)["input_ids"] for text in ("first?", "the second one, longer", "x", "x")]
STREAMS = [(0, row) for row in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def drawn(model: Any, form: PromptForm, temperature: float = 1.0, **options: Any) -> list[Any]:
    return sample(model, PROMPTS, Sampling(12, temperature, form=form), streams=STREAMS, **options)


def test_samples_are_those_of_whole_prompts(model: Any):
    whole, shared = drawn(model, PromptForm()), drawn(model, PromptForm(START, tokenizer=TOKENIZER))
    assert [one.ids for one in whole] == [one.ids for one in shared]
    for one, other in zip(whole, shared, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    alone = drawn(model, PromptForm(START, tokenizer=TOKENIZER), batch_size=1)
    assert [one.ids for one in alone] == [one.ids for one in whole]


def test_the_beginning_is_computed_once(model: Any):
    tokens: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    drawn(model, PromptForm(START, tokenizer=TOKENIZER), batch_size=1)
    hook.remove()
    constant, first = tokens[0], tokens[1]
    assert constant == len(TOKENIZER(START)["input_ids"])
    assert first == max(len(prompt) for prompt in PROMPTS) - constant  # of every prompt the rest alone, longest first
    assert tokens.count(constant) == 1


def test_a_prompt_always_keeps_a_token(model: Any):
    form = PromptForm(START, tokenizer=TOKENIZER)
    prefix = shared_prefix(model, [TOKENIZER(START)["input_ids"]], form)
    assert prefix is not None
    assert prefix.length == len(TOKENIZER(START)["input_ids"]) - 1
    assert shared_prefix(model, [PROMPTS[0], [1, 2, 3]], form) is None


def test_windows_are_computed_whole():
    window = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)).eval()
    assert shared_prefix(window, PROMPTS, PromptForm(START, tokenizer=TOKENIZER)) is None


def test_text_ends_a_response(model: Any):
    """The stop is a text that the model itself writes, in the middle of its greedy response."""
    whole = drawn(model, PromptForm(), temperature=0.0)[0]
    text = TOKENIZER.decode(whole.ids)
    stop = text[3:5]
    ended = drawn(model, PromptForm(stops=(stop,), tokenizer=TOKENIZER), temperature=0.0)[0]
    assert TOKENIZER.decode(ended.ids) == text[: text.index(stop)].rstrip()
    assert ended.finish == "stop"
    assert len(ended.log_probs) == len(ended.ids)
    assert ended.ids == whole.ids[: len(ended.ids)]


def test_decoding_ends_where_every_response_has(model: Any):
    text = TOKENIZER.decode(drawn(model, PromptForm(), temperature=0.0)[2].ids)
    steps: list[int] = []
    hook = model.register_forward_pre_hook(lambda *_: steps.append(1))
    sampling = Sampling(200, 0.0, form=PromptForm(stops=(text[1:3],), tokenizer=TOKENIZER))
    sample(model, PROMPTS[2:], sampling, streams=STREAMS[2:])
    hook.remove()
    assert len(steps) <= 9
