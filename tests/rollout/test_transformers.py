"""The engine that samples from the live policy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import RolloutEngine, TransformersEngine
from rlhf_lightning.rollout.probe import gap
from rlhf_lightning.types import Sampling

PROMPTS = [[1, 50, 60], [1, 70], [1, 80, 90, 100, 110]]
SAMPLING = Sampling(max_new_tokens=8)


def _policy(adapter=None):
    return ModelBuilder(TinyRandom(initializer_range=0.3), adapter, "none")().policy


def _engine(policy, **options):
    engine = TransformersEngine(None, **options)
    engine.sync(policy, 4)
    return engine


@pytest.fixture(scope="module")
def policy():
    return _policy()


def test_it_is_an_engine(policy):
    engine = _engine(policy, max_new_tokens=9, min_new_tokens=2)
    assert isinstance(engine, RolloutEngine)
    assert (engine.name, engine.exact, engine.max_new_tokens, engine.min_new_tokens) == ("transformers", True, 9, 2)


def test_samples_come_by_prompt_and_carry_the_version(policy):
    groups = _engine(policy).generate(PROMPTS, SAMPLING, n=3, seeds=[7, 8, 9])
    assert [len(group) for group in groups] == [3, 3, 3]
    assert all(sample.version == 4 for group in groups for sample in group)
    assert len({tuple(sample.ids) for group in groups for sample in group}) == 9


def test_a_sample_is_a_function_of_prompt_seed_and_number(policy):
    groups = _engine(policy).generate(PROMPTS, SAMPLING, n=3, seeds=[7, 8, 9])
    for batch_size in (1, 2):
        engine = _engine(policy, batch_size=batch_size)
        for prompt, seed, group in zip(PROMPTS, [7, 8, 9], groups, strict=True):
            again = engine.generate([prompt], SAMPLING, n=2, seeds=[seed])[0]
            assert [sample.ids for sample in again] == [sample.ids for sample in group[:2]]
    other = _engine(policy).generate(PROMPTS, SAMPLING, n=3, seeds=[8, 7, 9])
    assert [s.ids for s in other[0]] != [s.ids for s in groups[0]]


def test_equal_prompts_with_other_seeds_are_other_samples(policy):
    first, second = _engine(policy).generate([PROMPTS[0]] * 2, SAMPLING, n=2, seeds=[1, 2])
    assert len({tuple(sample.ids) for sample in (*first, *second)}) == 4


def test_it_samples_from_the_weights_as_they_are():
    policy = _policy()
    engine = _engine(policy)
    greedy = Sampling(max_new_tokens=8, temperature=0.0)
    before = engine.generate(PROMPTS, greedy, n=1, seeds=[0, 0, 0])
    with torch.no_grad():
        policy.base.lm_head.weight.neg_()
    assert engine.generate(PROMPTS, greedy, n=1, seeds=[0, 0, 0]) != before


def test_the_adapter_is_on_and_autocast_off():
    plain, policy = _policy(), _policy(Lora(r=4, seed=0, init=False))
    expected = _engine(policy).generate(PROMPTS, SAMPLING, n=2, seeds=[1, 2, 3])
    assert _engine(plain).generate(PROMPTS, SAMPLING, n=2, seeds=[1, 2, 3]) != expected
    with torch.autocast("cpu", torch.bfloat16):
        assert _engine(policy).generate(PROMPTS, SAMPLING, n=2, seeds=[1, 2, 3]) == expected


@pytest.mark.parametrize("adapter", [None, Lora(r=4, seed=0, init=False)])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_a_copy_in_the_same_dtype_is_the_policy(architecture, adapter):
    source = TinyRandom(architecture=architecture, initializer_range=0.3, tie_embeddings=architecture == "gpt2")
    policy = ModelBuilder(source, adapter, "none")().policy
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    expected = _engine(policy).generate(PROMPTS, SAMPLING, n=2, seeds=[1, 2, 3])
    made = _engine(policy, dtype="float32").generate(PROMPTS, SAMPLING, n=2, seeds=[1, 2, 3])
    assert [[s.ids for s in group] for group in made] == [[s.ids for s in group] for group in expected]
    uncopied = torch.tensor([value for group in expected for s in group for value in s.log_probs])
    copied = torch.tensor([value for group in made for s in group for value in s.log_probs])
    torch.testing.assert_close(copied, uncopied, atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("adapter", [None, Lora(r=4, seed=0, init=False)])
def test_a_copy_follows_at_each_sync(adapter):
    policy, greedy = _policy(adapter), Sampling(max_new_tokens=8, temperature=0.0)
    engine = _engine(policy, dtype="float32")
    before = engine.generate(PROMPTS, greedy, n=1, seeds=[0, 0, 0])
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.mul_(-0.5)  # of both factors of an adapter, so its update becomes a quarter
    assert engine.generate(PROMPTS, greedy, n=1, seeds=[0, 0, 0]) == before
    engine.sync(policy, 5)
    after = engine.generate(PROMPTS, greedy, n=1, seeds=[0, 0, 0])
    expected = _engine(policy).generate(PROMPTS, greedy, n=1, seeds=[0, 0, 0])
    assert [group[0].ids for group in after] == [group[0].ids for group in expected]
    assert [group[0].ids for group in after] != [group[0].ids for group in before]


def test_a_copy_in_half_precision_is_near_the_policy():
    policy = ModelBuilder(TinyRandom(), None, "none")().policy
    engine = _engine(policy, dtype="bfloat16")
    samples = engine.generate(PROMPTS, SAMPLING, n=4, seeds=[1, 2, 3])
    exact = _engine(policy).generate(PROMPTS, SAMPLING, n=4, seeds=[1, 2, 3])
    same = [(a, b) for half, full in zip(samples, exact, strict=True) for a, b in zip(half, full, strict=True)]
    same = [(a, b) for a, b in same if a.ids == b.ids]
    assert len(same) >= 3
    off = gap(
        torch.tensor([x for a, _ in same for x in a.log_probs]), torch.tensor([x for _, b in same for x in b.log_probs])
    )
    assert 1e-5 < off["mean"] < 0.01
    engine.close()
    assert engine._copy is None


def test_the_policy_is_left_as_it_was(policy):
    policy.train()
    state = torch.get_rng_state()
    _engine(policy).generate(PROMPTS, SAMPLING, n=2, seeds=[1, 2, 3])
    assert policy.training
    assert all(part.training for part in policy.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in policy.parameters())


def test_a_process_without_prompts_has_no_samples(policy):
    assert _engine(policy).generate([], SAMPLING, n=4, seeds=[]) == []


def test_before_the_first_sync_there_is_nothing_to_sample_from(policy):
    engine = TransformersEngine(None)
    with pytest.raises(ValueError, match="call sync"):
        engine.generate(PROMPTS, SAMPLING, n=1, seeds=[0, 0, 0])
    engine.sync(policy, 0)
    engine.close()
    with pytest.raises(ValueError, match="call sync"):
        engine.generate(PROMPTS, SAMPLING, n=1, seeds=[0, 0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "min_new_tokens=5"),
        ({"batch_size": 0}, "rollout.batch_size=0"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"dtype": "int8"}, "rollout.dtype=int8"),
        ({"max_gap": 0.0}, "rollout.max_gap=0.0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        TransformersEngine(None, **options)


def test_impossible_calls(policy):
    with pytest.raises(ValueError, match="n=0"):
        _engine(policy).generate(PROMPTS, SAMPLING, n=0, seeds=[0, 0, 0])
    with pytest.raises(ValueError, match="seeds"):
        _engine(policy).generate(PROMPTS, SAMPLING, n=1, seeds=[0])
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        _engine(policy).generate([[1], []], SAMPLING, n=1, seeds=[0, 0])


@pytest.mark.parametrize(("kind", "rows", "dtype"), [("cpu", 64, None), ("cuda", 256, torch.bfloat16)])
def test_defaults_follow_the_device(kind, rows, dtype, policy, monkeypatch, caplog):
    """The device's kind is pretended, so the copy of the second case lies on the CPU."""
    device = SimpleNamespace(device=SimpleNamespace(type=kind))
    monkeypatch.setattr("rlhf_lightning.rollout.transformers.transformers_model", lambda _policy: device)
    engine = TransformersEngine(None)
    with caplog.at_level("INFO"):
        for version in range(2):
            engine.sync(policy, version)
    assert (engine.batch_size, engine.dtype) == (rows, dtype)
    assert (engine._copy is None) == (dtype is None)
    assert [record.message.split(":")[0] for record in caplog.records].count("rollout.dtype=auto") == 1
    chosen = TransformersEngine(None, batch_size=3, dtype=None)
    chosen.sync(policy, 0)
    assert (chosen.batch_size, chosen.dtype) == (3, None)
