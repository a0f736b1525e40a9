"""Sampling from the live policy: what it draws from, that padding and batching do not matter, that nothing leaks."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom

PROMPTS = [[1, 50, 60], [1, 70], [1, 80, 90, 100, 110, 120], [40]]


@pytest.fixture(scope="module")
def actor():
    return ModelBuilder(TinyRandom(initializer_range=0.3), None, "none")().policy


def _greedy(actor, prompt, steps):
    """One row, no cache, no padding, no transformers' generate."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(actor.base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == 3:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_greedy_is_the_plain_loop(architecture, backend):
    source = TinyRandom(architecture=architecture, backend=backend, initializer_range=0.3)
    actor = ModelBuilder(source, None, "none")().policy
    expected = [_greedy(actor, prompt, 8) for prompt in PROMPTS]
    assert len({tuple(response) for response in expected}) > 1
    for batch_size in (1, 4):
        assert generate(actor, PROMPTS, max_new_tokens=8, temperature=0, batch_size=batch_size) == expected


def test_samples_follow_the_model(actor):
    prompt, draws = [1, 50, 60], 4000
    logits = actor.base(torch.tensor([prompt])).logits[0, -1].detach()
    for temperature in (1.0, 0.5):
        expected = (logits / temperature).softmax(-1)
        samples = generate(actor, [prompt] * draws, max_new_tokens=1, temperature=temperature, batch_size=draws)
        counts = torch.bincount(torch.tensor(samples)[:, 0], minlength=260) / draws
        # Total variation of 4000 exact draws is about 0.05 at temperature 1; top-k 50 alone would add 0.1.
        assert 0.5 * (counts - expected).abs().sum() < 0.12
        assert (counts > 0).sum() > (60 if temperature == 1 else 20)


def test_top_p_cuts_the_tail(actor):
    prompt = [1, 50, 60]
    probabilities, order = actor.base(torch.tensor([prompt])).logits[0, -1].softmax(-1).sort(descending=True)
    kept = set(order[: int((probabilities.cumsum(0) < 0.3).sum()) + 1].tolist())
    samples = generate(actor, [prompt] * 200, max_new_tokens=1, top_p=0.3, batch_size=200)
    assert {ids[0] for ids in samples} <= kept
    assert len(kept) > 1


def test_defaults_of_the_checkpoint_are_not_used(actor):
    expected = generate(actor, PROMPTS, max_new_tokens=6, seed=1)
    config = actor.base.generation_config
    before = config.to_dict()
    config.top_k, config.repetition_penalty, config.min_p, config.max_length, config.temperature = 1, 5.0, 0.9, 4, 0.1
    try:
        assert generate(actor, PROMPTS, max_new_tokens=6, seed=1) == expected
        assert actor.base.generation_config is config
    finally:
        config.update(**before)


def test_seeded_without_disturbing_the_global_generator(actor):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = generate(actor, PROMPTS, max_new_tokens=6, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert generate(actor, PROMPTS, max_new_tokens=6, seed=1) == first
    assert generate(actor, PROMPTS, max_new_tokens=6, seed=2) != first
    repeated = generate(actor, [PROMPTS[0]] * 6, max_new_tokens=6, seed=1, batch_size=2)
    assert len({tuple(ids) for ids in repeated}) > 3  # batches do not repeat each other's draws


def test_eos_is_kept_and_ends_the_response():
    source = TinyRandom(initializer_range=0.3)
    actor = ModelBuilder(source, None, "none")().policy
    with torch.no_grad():
        actor.base.lm_head.weight.mul_(0.01)  # nearly uniform: EOS about once in 260 tokens
    responses = generate(actor, [PROMPTS[0]] * 64, max_new_tokens=40, seed=0, batch_size=32)
    ended = [ids for ids in responses if 3 in ids]
    assert ended
    assert all(ids.index(3) == len(ids) - 1 for ids in ended)
    assert all(len(ids) == 40 for ids in responses if 3 not in ids)


def test_every_end_of_the_model_counts(actor):
    config = actor.base.generation_config
    greedy = generate(actor, [PROMPTS[0]], max_new_tokens=8, temperature=0)[0]
    before = config.eos_token_id
    config.eos_token_id = [3, greedy[2]]
    try:
        expected = greedy[: greedy.index(greedy[2]) + 1]
        assert generate(actor, [PROMPTS[0]], max_new_tokens=8, temperature=0)[0] == expected
    finally:
        config.eos_token_id = before


def test_adapter_on_and_off():
    plain = ModelBuilder(TinyRandom(), None, "none")().policy
    actor = ModelBuilder(TinyRandom(), Lora(r=4, seed=0, init=False), "none")().policy
    base = generate(plain, PROMPTS, max_new_tokens=8, temperature=0)
    assert generate(actor, PROMPTS, max_new_tokens=8, temperature=0) != base
    assert generate(actor, PROMPTS, max_new_tokens=8, temperature=0, adapter=False) == base
    assert all(p.requires_grad == ("lora_" in name) for name, p in actor.named_parameters())


def test_mode_is_put_back_and_dropout_is_off():
    fields = {"embd_pdrop": 0.5, "resid_pdrop": 0.5}
    source = TinyRandom(architecture="gpt2", config=fields, dropout=True, gradient_checkpointing=True)
    actor = ModelBuilder(source, None, "none")().policy.train()
    without = ModelBuilder(source, None, "none", dropout=False)().policy
    expected = generate(without, PROMPTS, max_new_tokens=8, temperature=0)
    assert generate(actor, PROMPTS, max_new_tokens=8, temperature=0) == expected
    assert actor.base.transformer.drop.training


def test_progress_is_reported_before_each_token_and_changes_nothing(actor):
    calls = []
    expected = generate(actor, PROMPTS, max_new_tokens=5)
    assert generate(actor, PROMPTS, max_new_tokens=5, progress=lambda: calls.append(1)) == expected
    assert len(calls) == max(map(len, expected))


def test_no_prompts_no_responses(actor):
    assert generate(actor, [], max_new_tokens=4) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_impossible_options(actor, options, message):
    with pytest.raises(ValueError, match=message):
        generate(actor, PROMPTS, **options)


def test_an_empty_prompt_is_refused(actor):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(actor, [[1], []])
