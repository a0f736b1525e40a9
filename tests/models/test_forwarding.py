"""Arguments of a model's forward: by any name that a release gives its arguments, and without router losses."""

from __future__ import annotations

import inspect
import logging
from functools import partial

import pytest
import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses.supervised import sft
from rlhf_lightning.methods import Supervised
from rlhf_lightning.models import forwarding
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.decoding.generation import sample
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.types import Example, Sampling
from tests.helpers.tiny_models import CONFIGS, UNPACKABLE, tiny_model

PROMPTS = [[1, 5, 6], [1, 7], [1, 8, 9, 10, 11, 12, 13]] * 2
SAMPLING = Sampling(max_new_tokens=8, ignore_eos=True)
EXPERTS = ("mixtral", "qwen2_moe")


@pytest.fixture(autouse=True)
def _nothing_reported_yet(monkeypatch):
    monkeypatch.setattr(forwarding, "_reported", set())


def _drawn(model, prompts=PROMPTS):
    return sample(model, prompts, SAMPLING, streams=[(3, row) for row in range(len(prompts))])


def _renamed(model, name, *, hand_on=True):
    """The model with a forward whose cache has another name; it may also ignore what it is given there."""
    forward, native = model.forward, forwarding.cache_name(model)
    calls = []

    def renamed(**arguments):
        cache = arguments.pop(name, None)
        calls.append(arguments["input_ids"].shape[1])
        return forward(**arguments, **({native: cache} if hand_on and cache is not None else {}))

    parameters = [p for p in inspect.signature(forward).parameters.values() if p.name != native]
    renamed.__signature__ = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)]
        + [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.kind is not p.VAR_KEYWORD]
    )
    model.forward = renamed
    return calls


@pytest.mark.parametrize("name", forwarding.CACHE_NAMES)
def test_the_cache_is_used_under_each_of_its_names(name, caplog):
    expected = [drawn.ids for drawn in _drawn(tiny_model("llama"))]
    model = tiny_model("llama")
    calls = _renamed(model, name)
    assert [drawn.ids for drawn in _drawn(model)] == expected
    assert calls == [7] + [1] * 7
    assert not caplog.records


def test_a_cache_under_an_unknown_name_is_reported_once_with_its_cost(caplog):
    expected = [drawn.ids for drawn in _drawn(tiny_model("llama"))]
    model = tiny_model("llama")
    calls = _renamed(model, "state_of_tomorrow")
    with caplog.at_level(logging.WARNING):
        assert [drawn.ids for drawn in _drawn(model)] == expected
        _drawn(model)
    assert calls[:8] == [7, 8, 9, 10, 11, 12, 13, 14]
    (record,) = caplog.records
    assert "LlamaForCausalLM takes no cache" in record.message
    assert "each token of a response computes its prompt and the response so far once more" in record.message


def test_a_state_that_is_no_cache_is_reported(caplog):
    with caplog.at_level(logging.WARNING):
        _drawn(tiny_model("mamba"))
    assert "MambaForCausalLM keeps a state" in caplog.text


def test_a_cache_that_is_ignored_stops_the_decoding():
    """It would give the probabilities of each token after itself alone."""
    model = tiny_model("llama")
    _renamed(model, "cache", hand_on=False)
    with pytest.raises(RuntimeError, match="LlamaForCausalLM left the cache that it was given empty"):
        _drawn(model)


def test_a_layout_that_does_not_reach_the_attention_stops_the_forward(monkeypatch):
    """Its tokens would attend to other responses."""
    actor = Actor(tiny_model("llama"))
    forward = actor.trunk.forward
    monkeypatch.setattr(actor.trunk, "forward", lambda *, shared_prefix, **options: forward(**options))
    with pytest.raises(RuntimeError, match="backend=padded"):
        actor(pack([Example([1, 5], [[6, 7], [8]])], kind="preference"))


@pytest.mark.parametrize("family", CONFIGS | UNPACKABLE)
def test_every_family_makes_only_the_logits_that_are_wanted(family, caplog):
    assert forwarding.takes(tiny_model(family), "logits_to_keep")


def test_logits_of_every_position_are_reported(caplog):
    model = tiny_model("mamba")
    forward = model.forward
    model.forward = lambda input_ids, attention_mask, use_cache: forward(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
    )
    with caplog.at_level(logging.WARNING):
        Actor(model)(pack([Example([1, 5], [[6, 7]])], kind="supervised"))
    assert "MambaForCausalLM has no argument logits_to_keep" in caplog.text


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_that_ask_for_a_router_loss_decode_and_score(family):
    """The loss is made over the tokens of a call and under the mask of all: it fails while a response is decoded."""
    model = tiny_model(family)
    assert model.config.output_router_logits
    samples = _drawn(model)
    batch = pack([Example(p, [drawn.ids]) for p, drawn in zip(PROMPTS, samples, strict=True)], kind="supervised")
    engine = torch.tensor([value for drawn in samples for value in drawn.log_probs])
    torch.testing.assert_close(Actor(model)(batch).token, engine, atol=1e-5, rtol=0)
    assert model.config.output_router_logits  # what an export writes


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("kind", [Actor, Scorer])
def test_no_forward_makes_a_router_loss(family, kind, monkeypatch):
    module = kind(tiny_model(family))
    outputs = []
    inner = module.base if kind is Actor else module.trunk
    inner.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    module(pack([Example([1, 5], [[6, 7], [8]])], kind="preference"))
    (output,) = outputs
    assert getattr(output, "router_logits", None) is None
    assert getattr(output, "aux_loss", None) is None


@pytest.mark.parametrize(("family", "reported"), [("mixtral", True), ("llama", False)])
def test_training_without_the_router_loss_is_reported(family, reported, caplog):
    models = Models(Actor(tiny_model(family)), None, None)
    module = Supervised(lambda: models, sft, partial(torch.optim.SGD, lr=0.1))
    with caplog.at_level(logging.WARNING):
        module.configure_optimizers()
    assert ("MixtralForCausalLM asks for the auxiliary loss of its router" in caplog.text) == reported


def test_a_configuration_that_asks_for_what_the_model_has_not_changes_nothing():
    expected = [drawn.ids for drawn in _drawn(tiny_model("llama"))]
    assert [drawn.ids for drawn in _drawn(tiny_model("llama", output_router_logits=True))] == expected
