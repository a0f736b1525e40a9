"""The decode loop against transformers' ``generate`` and against the trainer's own log-probs."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.decoding import states
from rlhf_lightning.models.decoding.generation import sample
from rlhf_lightning.models.decoding.states import why_uncached
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.types import Example, Sampling

PROMPTS = [[1, 50, 60], [1, 70], [1, 80, 90, 100, 110, 120, 130, 140, 150], [40]]
WINDOW = {"sliding_window": 4}  # shorter than the longest prompt, and than every prompt with its response
#: Every kind of cache and of positions: rotary, learned and offset positions, windows in all or in some layers, and a
#: state-space model, which is computed without a cache.
ARCHITECTURES = {
    "llama": {},
    "mistral": WINDOW,
    "qwen2": {},
    "qwen3": {},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW,
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {},
    "mamba": {},
}


def _actor(architecture="llama", **options):
    source = TinyRandom(architecture=architecture, initializer_range=0.3, **options)
    return ModelBuilder(source, None, "none")().policy


@pytest.fixture(scope="module", params=ARCHITECTURES)
def actor(request):
    return _actor(request.param, config=ARCHITECTURES[request.param])


@pytest.fixture(scope="module")
def llama():
    return _actor()


def _streams(count):
    return [(5, row) for row in range(count)]


def _huggingface(model, prompt, sampling, ends):
    """One prompt, so nothing is padded."""
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
    )
    ids = torch.tensor([prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def _ends(model):
    return model.generation_config.eos_token_id


def _teacher_forced(actor, prompts, samples, temperature):
    batch = pack([Example(p, [drawn.ids]) for p, drawn in zip(prompts, samples, strict=True)], kind="supervised")
    with torch.no_grad():
        return actor(batch, temperature=temperature).token


def test_greedy_is_generate_token_by_token(actor):
    sampling = Sampling(max_new_tokens=12, temperature=0.0)
    expected = [_huggingface(actor.base, prompt, sampling, _ends(actor.base)) for prompt in PROMPTS]
    samples = sample(actor, PROMPTS, sampling, streams=_streams(4))
    assert [drawn.ids for drawn in samples] == expected
    assert len({tuple(ids) for ids in expected}) == 4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_the_trainers(actor, temperature):
    """Mutations: positions that count padding, a mask that shows it, a cache without its last prompt token."""
    sampling = Sampling(max_new_tokens=12, temperature=temperature, top_p=0.95)
    prompts = PROMPTS * 3
    samples = sample(actor, prompts, sampling, streams=_streams(12))
    engine = torch.tensor([value for drawn in samples for value in drawn.log_probs])
    expected = _teacher_forced(actor, prompts, samples, temperature)
    # logits reach 30 with these weights, and a float32 of that size is exact to 2e-6
    torch.testing.assert_close(engine, expected, atol=3e-5, rtol=0)
    assert max(len(drawn.ids) for drawn in samples) == 12


def test_log_probs_to_rounding():
    actor = ModelBuilder(TinyRandom(), None, "none")().policy
    prompts = PROMPTS * 4
    samples = sample(actor, prompts, Sampling(max_new_tokens=24), streams=_streams(16))
    engine = torch.tensor([value for drawn in samples for value in drawn.log_probs])
    torch.testing.assert_close(engine, _teacher_forced(actor, prompts, samples, 1.0), atol=1e-5, rtol=0)


def test_what_is_drawn_does_not_depend_on_the_batch(actor):
    prompts, streams = PROMPTS * 3, _streams(12)
    sampling = Sampling(max_new_tokens=10)
    together = sample(actor, prompts, sampling, streams=streams)
    assert len({tuple(drawn.ids) for drawn in together}) > 8
    for options in ({"batch_size": 1}, {"batch_size": 5}, {"batch_tokens": 40}):
        apart = sample(actor, prompts, sampling, streams=streams, **options)
        assert [drawn.ids for drawn in apart] == [drawn.ids for drawn in together]
    order = [7, 2, 11, 0]
    some = sample(actor, [prompts[i] for i in order], sampling, streams=[streams[i] for i in order])
    assert [drawn.ids for drawn in some] == [together[i].ids for i in order]


def test_only_models_with_keys_and_values_are_cached(actor):
    assert (why_uncached(actor.base) is not None) == (actor.base.config.model_type == "mamba")


def test_each_token_goes_through_the_model_once(actor):
    """Whatever the installed release calls the cache; a model without one computes the whole row for each token."""
    computed = []
    actor.base.register_forward_pre_hook(
        lambda _module, _args, options: computed.append(options["input_ids"].shape), with_kwargs=True
    )
    prompts = [PROMPTS[0], PROMPTS[2]] * 3
    sample(actor, prompts, Sampling(max_new_tokens=5, ignore_eos=True), streams=_streams(6))
    once = [(2, 9), (6, 1), (6, 1), (6, 1), (6, 1)]
    whole = [(2, 9), (6, 10), (6, 11), (6, 12), (6, 13)]
    assert computed == (whole if actor.base.config.model_type == "mamba" else once)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "mamba"])
def test_rows_that_ended_are_left_out(architecture, monkeypatch):
    """Ends are frequent, so the batch shrinks all the time; every row must be what it is alone."""
    actor = _actor(architecture, config=ARCHITECTURES[architecture])
    sizes = []
    step = states._Cached.step if architecture != "mamba" else states._Whole.step
    kind = states._Cached if architecture != "mamba" else states._Whole

    def counted(self, ids):
        sizes.append(len(ids))
        return step(self, ids)

    monkeypatch.setattr(kind, "step", counted)
    sampling = Sampling(max_new_tokens=24, temperature=3.0, stop=tuple(range(0, 260, 8)))
    prompts = [prompt for prompt in PROMPTS for _ in range(6)]
    together = sample(actor, prompts, sampling, streams=_streams(24))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 3 * sizes[-1]
    alone = sample(actor, prompts, sampling, streams=_streams(24), batch_size=1)
    assert [drawn.ids for drawn in together] == [drawn.ids for drawn in alone]
    for drawn in together:
        inside, last = drawn.ids[:-1], drawn.ids[-1]
        assert not any(token % 8 == 0 for token in inside)
        ended = last % 8 == 0 or last == actor.base.generation_config.eos_token_id
        assert drawn.finish == ("stop" if ended else "length")
        assert len(drawn.log_probs) == len(drawn.ids)


def test_an_end_comes_after_the_least_tokens(llama):
    """As in transformers and vLLM: the end is not one of them. Mutation: counting it makes responses of 5."""
    stop = tuple(range(3, 260, 3))  # the model's own end among them
    samples = sample(llama, PROMPTS * 6, Sampling(max_new_tokens=12, min_new_tokens=5, stop=stop), streams=_streams(24))
    assert min(len(drawn.ids) for drawn in samples) == 6
    assert all(token not in stop for drawn in samples for token in drawn.ids[:5])
    greedy = Sampling(max_new_tokens=12, temperature=0.0, min_new_tokens=5, stop=stop)
    samples = sample(llama, PROMPTS, greedy, streams=_streams(4))
    assert [drawn.ids for drawn in samples] == [_huggingface(llama.base, prompt, greedy, [*stop]) for prompt in PROMPTS]
    engine = torch.tensor([value for drawn in samples for value in drawn.log_probs])
    torch.testing.assert_close(engine, _teacher_forced(llama, PROMPTS, samples, 1.0), atol=3e-5, rtol=0)


def test_ends_can_be_ignored(llama):
    stop = tuple(range(0, 260, 2))
    sampling = Sampling(max_new_tokens=12, stop=stop, ignore_eos=True, min_new_tokens=3)
    samples = sample(llama, PROMPTS, sampling, streams=_streams(4))
    assert all(len(drawn.ids) == 12 and drawn.finish == "length" for drawn in samples)
    assert any(token in stop for drawn in samples for token in drawn.ids[:3])  # they are drawn all the same


def test_an_end_at_the_limit_is_an_end(llama):
    greedy = sample(llama, [PROMPTS[0]], Sampling(max_new_tokens=6, temperature=0.0), streams=[(0, 0)])[0]
    assert greedy.finish == "length"
    stop = Sampling(max_new_tokens=6, temperature=0.0, stop=(greedy.ids[5],))
    assert greedy.ids[5] not in greedy.ids[:5]
    assert sample(llama, [PROMPTS[0]], stop, streams=[(0, 0)])[0].finish == "stop"


def test_a_prompt_is_computed_once(llama, monkeypatch):
    shapes = []
    forward = states._Cached._forward

    def counted(self, ids, positions):
        shapes.append(tuple(ids.shape))
        return forward(self, ids, positions)

    monkeypatch.setattr(states._Cached, "_forward", counted)
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(4)]
    sample(llama, prompts, Sampling(max_new_tokens=3, ignore_eos=True), streams=_streams(8))
    assert shapes == [(2, 3), (8, 1), (8, 1)]


@pytest.mark.parametrize(("tokens", "most"), [(50, 5), (1, 1)])
def test_no_more_tokens_in_a_batch_than_allowed(llama, monkeypatch, tokens, most):
    """Of rows that are refilled too: columns left behind count. Without room for one, a response is decoded alone."""
    sizes = []
    step = states._Cached.step

    def counted(self, ids):
        sizes.append((len(ids), self.ids.shape[1] + 1))
        return step(self, ids)

    monkeypatch.setattr(states._Cached, "step", counted)
    sampling = Sampling(max_new_tokens=7, temperature=3.0, stop=tuple(range(0, 260, 8)))
    samples = sample(llama, PROMPTS * 4, sampling, streams=_streams(16), batch_tokens=tokens, batch_size=6)
    assert all(drawn.ids for drawn in samples)
    assert all((rows * width <= tokens and rows <= 6) or rows == 1 for rows, width in sizes)
    assert max(rows for rows, _ in sizes) == most


def test_a_row_that_ended_makes_way_for_another(actor, monkeypatch):
    """Tokens and log-probs are those of any other batch. Mutations: positions or masks of the rows beside."""
    sizes = []
    kind = states._Whole if actor.base.config.model_type == "mamba" else states._Cached
    step = kind.step

    def counted(self, ids):
        sizes.append(len(ids))
        return step(self, ids)

    monkeypatch.setattr(kind, "step", counted)
    sampling = Sampling(max_new_tokens=16, temperature=2.0, stop=tuple(range(0, 260, 12)))
    prompts, streams = [prompt for prompt in PROMPTS for _ in range(8)], _streams(32)
    whole = sample(actor, prompts, sampling, streams=streams)
    assert len({len(drawn.ids) for drawn in whole}) > 8
    for batch_size in (1, 3, 8):
        sizes.clear()
        refilled = sample(actor, prompts, sampling, streams=streams, batch_size=batch_size)
        assert [drawn.ids for drawn in refilled] == [drawn.ids for drawn in whole]
        for one, other in zip(refilled, whole, strict=True):
            torch.testing.assert_close(one.log_probs, other.log_probs, atol=3e-5, rtol=0)
    assert len(sizes) < 50  # four batches of 8, in each of which a row reaches the limit, take 60 steps


def test_the_prompt_of_a_group_is_computed_twice_at_most(llama, monkeypatch):
    computed = []
    start = states._Cached.start

    def counted(self):
        computed.append(len(self.ids))
        return start(self)

    monkeypatch.setattr(states._Cached, "start", counted)
    sampling = Sampling(max_new_tokens=8, temperature=3.0, stop=tuple(range(0, 260, 12)))
    sample(llama, [PROMPTS[0]] * 20 + [PROMPTS[2]] * 20, sampling, streams=_streams(40), batch_size=8)
    assert computed == [1, 1, 1]
