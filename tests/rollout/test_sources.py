"""Responses of the reference and of mixtures with it, drawn by the engine that samples from the live policy."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout import OpenAIEngine, TransformersEngine, VLLMServerEngine
from rlhf_lightning.rollout.base import ReferenceEngine
from rlhf_lightning.rounds.collect import check_parts
from rlhf_lightning.types import Draw, RolloutOptions, Sampling

PROMPTS = [[1, 50, 60], [1, 70], [1, 80, 90, 100, 110]]
SEEDS = [7, 8, 9]


def sampling(source: str, mix: float = 0.0) -> Sampling:
    return Sampling(max_new_tokens=8, source=source, mix=mix)


def models_of(reference: str, adapter: Lora | None = None) -> Models:
    return ModelBuilder(TinyRandom(initializer_range=0.3), adapter, reference)()


def engine_of(models: Models, **options) -> TransformersEngine:
    engine = TransformersEngine(None, **options)
    engine.sync(models.policy, 0)
    engine.hold(models.reference)
    return engine


def drawn(engine: TransformersEngine, source: str, mix: float = 0.0) -> list[tuple[list[int], list[float]]]:
    groups = engine.generate(PROMPTS, sampling(source, mix), n=2, seeds=SEEDS)
    return [(sample.ids, sample.log_probs) for group in groups for sample in group]


@torch.no_grad()
def moved(models: Models, steps: int) -> None:
    """Change what is trained, as optimiser steps would."""
    for step in range(steps):
        torch.manual_seed(step)
        for parameter in models.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize(("reference", "adapter"), [("adapter_off", Lora(r=4, seed=0)), ("frozen", None)])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_reference_draws_the_same_after_any_number_of_steps(reference, adapter, dtype):
    """Samples and log-probs of the base, not of the policy, bit for bit."""
    base = engine_of(models_of("frozen"))
    expected = drawn(base, "policy")
    models = models_of(reference, adapter)
    engine = engine_of(models, dtype=dtype)
    for steps in (0, 10):
        moved(models, steps)
        engine.sync(models.policy, steps)
        assert drawn(engine, "reference") == expected
    assert [ids for ids, _ in drawn(engine, "policy")] != [ids for ids, _ in expected]


@pytest.mark.parametrize(("reference", "adapter"), [("adapter_off", Lora(r=4, seed=0)), ("frozen", None)])
def test_a_mixture_lies_between_both(reference, adapter):
    models = models_of(reference, adapter)
    engine = engine_of(models)
    moved(models, 10)
    for mix, source in ((0.0, "policy"), (1.0, "reference")):
        ends = drawn(engine, source)
        assert [ids for ids, _ in drawn(engine, "mixture", mix)] == [ids for ids, _ in ends]
    mixed = drawn(engine, "mixture", 0.5)
    assert [ids for ids, _ in mixed] not in ([ids for ids, _ in drawn(engine, s)] for s in ("policy", "reference"))


def test_a_mixture_is_the_geometric_mean_of_the_distributions():
    """Its log-probs are those of softmax(c * reference + (1 - c) * policy), computed without any cache."""
    models = models_of("frozen")
    moved(models, 10)
    engine, mix = engine_of(models), 0.3
    repeated = [prompt for prompt in PROMPTS for _ in range(2)]
    for (ids, log_probs), prompt in zip(drawn(engine, "mixture", mix), repeated, strict=True):
        whole = torch.tensor([[*prompt, *ids]])
        with torch.no_grad():
            both = (models.policy, models.reference.actor)
            logits = [actor.model(whole).logits[0, len(prompt) - 1 : -1] for actor in both]
        expected = ((1 - mix) * logits[0] + mix * logits[1]).log_softmax(-1)
        drawn_log_probs = expected[torch.arange(len(ids)), torch.tensor(ids)]
        torch.testing.assert_close(torch.tensor(log_probs), drawn_log_probs, atol=1e-4, rtol=0)


def test_the_adapter_is_on_again_after_a_mixture():
    models = models_of("adapter_off", Lora(r=4, seed=0))
    moved(models, 10)
    engine = engine_of(models)
    before = generate(models.policy, PROMPTS, max_new_tokens=8)
    drawn(engine, "mixture", 0.5)
    drawn(engine, "reference")
    assert generate(models.policy, PROMPTS, max_new_tokens=8) == before


def test_a_reference_without_weights_is_refused():
    models = models_of("frozen")
    engine = engine_of(models)
    for reference in (None, ModelBuilder(TinyRandom(), None, "cached")().reference):
        with pytest.raises(ValueError, match=r"reference=(none|cached) has no weights: choose reference=frozen"):
            engine.hold(reference)
    engine.reference = None
    with pytest.raises(ValueError, match=r"call hold\(reference\)"):
        drawn(engine, "reference")


@pytest.mark.parametrize("engine", [OpenAIEngine, partial(VLLMServerEngine)])
@pytest.mark.parametrize("source", ["reference", "mixture"])
def test_other_engines_say_that_they_cannot(engine, source):
    made = engine(None, url="http://127.0.0.1:9")
    assert not isinstance(made, ReferenceEngine)

    class Options(RolloutOptions):
        draws = (Draw(), Draw(source))

    with pytest.raises(ValueError, match=rf"rounds.draws.1: rollout={made.name} cannot draw from source={source}"):
        check_parts(made, None, Options())
    check_parts(made, None, RolloutOptions(greedy_baseline=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 at least 0"),
        ({"source": "mixture", "mix": 1.5}, r"mix=1.5 in \[0, 1\]"),
        ({"mix": 0.5}, "mix=0.5 is of source=mixture, not of source=policy"),
        ({"source": "data", "n": 2}, "source=data has n=1, not n=2"),
    ],
)
def test_impossible_draws(options, message):
    with pytest.raises(ValueError, match=message):
        Draw(**options)


def test_the_greedy_baseline_is_a_draw():
    assert RolloutOptions(group_size=2, greedy_baseline=True).draws == (Draw("policy", 2), Draw("policy", 1, 0.0))
    assert RolloutOptions(group_size=2, temperature=0.5).draws == (Draw("policy", 2, 0.5),)
