"""Roles: three kinds of reference with one set of numbers, refreshing, options of the builder."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters import Lora
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.builder import ModelBuilder
from rlhf_lightning.models.modes import disable_dropout, evaluating
from rlhf_lightning.models.reference import AdapterDisabled, Cached, ReferenceKind
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from rlhf_lightning.models.vocabulary import align_with_tokenizer
from tests.models.pairs import pairs

LORA = Lora(r=4, seed=0)


def _train(policy: Actor, steps: int = 2) -> None:
    """A few large steps, so that the policy is somewhere else."""
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.5)
    for seed in range(steps):
        loss = -policy.train()(pairs(seed)).mean().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


class RecordingSource:
    """A source whose weights nobody may load."""

    name = "recording"

    def tokenizer(self):
        raise AssertionError("the tokenizer was read")

    def load(self, quantization=None):
        raise AssertionError("weights were loaded")


# Kinds of reference


@pytest.mark.parametrize("backend", ["packed", "padded"])
def test_frozen_adapter_off_and_cached_agree_to_the_bit(backend):
    batch = pairs(9)
    models = {
        kind: ModelBuilder(TinyRandom(), LORA, kind, backend=backend)() for kind in ("frozen", "adapter_off", "cached")
    }
    batch.reference_log_probs = models["cached"].policy(batch).token.detach()
    for each in models.values():
        _train(each.policy)
    numbers = {kind: each.reference(batch) for kind, each in models.items()}
    for kind, each in models.items():
        assert each.reference.kind == kind
        assert not numbers[kind].token.requires_grad
        assert torch.equal(numbers[kind].token, numbers["cached"].token)
        assert torch.equal(numbers[kind].sum(), numbers["cached"].sum())
        assert numbers[kind].mean_length == numbers["cached"].mean_length
        assert (each.policy(batch).token - numbers[kind].token).abs().max() > 0.1  # the policy did move


def test_no_reference():
    assert ModelBuilder(TinyRandom(), None, "none")().reference is None


def test_cached_without_numbers_names_the_option():
    with pytest.raises(ValueError, match=r"reference=cached.*reference_store.*reference=frozen"):
        Cached()(pairs())


def test_frozen_copy_stays_in_evaluation_mode_and_out_of_training():
    models = ModelBuilder(TinyRandom(), None, "frozen")()
    models.reference.train()
    assert not any(part.training for part in models.reference.modules())
    assert not any(p.requires_grad for p in models.reference.parameters())
    assert all(p.requires_grad for p in models.policy.parameters())


def test_adapter_off_leaves_the_policy_as_it_was():
    source = TinyRandom(architecture="gpt2", dropout=True, backend="padded")  # GPT-2's config has dropout 0.1
    policy, batch = ModelBuilder(source, Lora(r=4, seed=0, dropout=0.5, init=False), "none")().policy.train(), pairs()
    reference = AdapterDisabled(policy)
    next(part for part in policy.modules() if type(part).__name__ == "GPT2Block").eval()
    modes = [part.training for part in policy.modules()]
    required = [p.requires_grad for p in policy.parameters()]
    first = reference(batch).token
    assert torch.equal(first, reference(batch).token)  # no dropout of the base either
    assert [part.training for part in policy.modules()] == modes
    assert [p.requires_grad for p in policy.parameters()] == required
    with evaluating(policy):
        assert not torch.equal(policy(batch).token, first)


# Refreshing


def test_hard_refresh_is_a_copy():
    models, batch = ModelBuilder(TinyRandom(), None, "frozen")(), pairs(7)
    start = models.reference(batch).token
    assert not models.reference.refreshed
    _train(models.policy)
    models.reference.refresh(models.policy)
    assert models.reference.refreshed
    with evaluating(models.policy):
        assert torch.equal(models.reference(batch).token, models.policy(batch).token)
    assert not torch.equal(models.reference(batch).token, start)
    before = models.reference(batch).token
    _train(models.policy)
    assert torch.equal(models.reference(batch).token, before)  # a copy, not the same tensors


def test_soft_refresh_mixes_the_weights():
    models = ModelBuilder(TinyRandom(), None, "frozen")()
    old = {name: p.clone() for name, p in models.reference.actor.named_parameters()}
    _train(models.policy)
    new = dict(models.policy.named_parameters())
    models.reference.refresh(models.policy, 0.6)
    for name, parameter in models.reference.actor.named_parameters():
        torch.testing.assert_close(parameter, 0.6 * new[name] + 0.4 * old[name])


def test_refresh_with_an_adapter_follows_the_adapter():
    models, batch = ModelBuilder(TinyRandom(), LORA, "frozen")(), pairs(7)
    _train(models.policy)
    models.reference.refresh(models.policy)
    with evaluating(models.policy):
        assert torch.equal(models.reference(batch).token, models.policy(batch).token)


def test_refresh_rounds_only_the_result():
    models = ModelBuilder(TinyRandom(dtype="bfloat16"), None, "frozen")()
    target = models.reference.actor.model.lm_head.weight
    with torch.no_grad():
        target.fill_(1.0)
        models.policy.model.lm_head.weight.fill_(1.0078125)  # the next bfloat16 number
    models.reference.refresh(models.policy, 0.75)
    assert torch.all(target == 1.0078125)  # 1.00586 rounds up; in bfloat16 the step 0.75 * 0.0078 would as well
    with torch.no_grad():
        target.fill_(1.0)
    models.reference.refresh(models.policy, 0.25)
    assert torch.all(target == 1.0)


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.5])
def test_refresh_weight_is_checked(weight):
    models = ModelBuilder(TinyRandom(), None, "frozen")()
    with pytest.raises(ValueError, match="must be in"):
        models.reference.refresh(models.policy, weight)


def test_refreshed_weights_survive_a_state_dict():
    models, batch = ModelBuilder(TinyRandom(), None, "frozen")(), pairs()
    _train(models.policy)
    models.reference.refresh(models.policy, 0.5)
    other = ModelBuilder(TinyRandom(), None, "frozen")().reference
    assert not torch.equal(other(batch).token, models.reference(batch).token)
    other.load_state_dict(models.reference.state_dict())
    assert torch.equal(other(batch).token, models.reference(batch).token)


# The builder


def test_impossible_combinations_are_refused_before_anything_loads():
    with pytest.raises(ValueError, match="adapter_off needs an adapter: adapter=lora"):
        ModelBuilder(RecordingSource(), None, "adapter_off")
    with pytest.raises(ValueError, match=r"reference='frosen'.*frozen, adapter_off, cached, teacher, none"):
        ModelBuilder(RecordingSource(), None, "frosen")
    with pytest.raises(ValueError, match="adapter_off needs an adapter"):
        AdapterDisabled(Actor(TinyRandom().load()))


def test_an_empty_adapter_is_none():
    assert ModelBuilder(TinyRandom(), {}, "none").adapter is None  # what adapter=none composes to
    assert ModelBuilder(TinyRandom(), None, "cached").reference is ReferenceKind.CACHED


def test_options_come_from_the_source_and_can_be_overridden():
    source = TinyRandom(backend="padded", gradient_checkpointing=True)
    assert ModelBuilder(source, None, "none")().policy.backend == "padded"
    builder = ModelBuilder(source, None, "none", backend="packed", gradient_checkpointing=False)
    assert builder().policy.backend == "packed"
    assert not builder.gradient_checkpointing


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])
def test_dropout_is_off_by_default_and_on_by_option(architecture):
    names = {"gpt2": ["attn_pdrop", "resid_pdrop", "embd_pdrop"], "opt": ["dropout", "attention_dropout"]}
    fields = dict.fromkeys(names.get(architecture, ["attention_dropout"]), 0.3)
    source = TinyRandom(architecture=architecture, config=fields)
    batch = pairs()
    policy = ModelBuilder(source, None, "none", backend="padded")().policy.train()
    assert torch.equal(policy(batch).token, policy(batch).token)
    random = ModelBuilder(source, None, "none", backend="padded", dropout=True)().policy.train()
    assert not torch.equal(random(batch).token, random(batch).token)


def test_dropout_of_the_adapter_is_the_adapters():
    policy = ModelBuilder(TinyRandom(), Lora(r=4, dropout=0.5, init=False, seed=0), "none")().policy.train()
    assert not torch.equal(policy(pairs()).token, policy(pairs()).token)


def test_functional_dropout_probabilities_are_found():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.router_jitter_noise, self.scale = nn.Dropout(0.1), 0.2, 0.5

    layer = Layer()
    disable_dropout(layer)
    assert (layer.drop.p, layer.router_jitter_noise, layer.scale) == (0.0, 0.0, 0.5)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("backend", ["packed", "padded"])
def test_gradient_checkpointing_changes_no_gradient(adapter, backend):
    gradients = []
    for checkpointing in (False, True):
        builder = ModelBuilder(TinyRandom(), adapter, "none", backend=backend, gradient_checkpointing=checkpointing)
        policy = builder().policy.train()
        policy(pairs()).sum().sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.requires_grad})
    assert all(g is not None and g.norm() > 0 for n, g in gradients[0].items() if "lora_A" not in n)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_gradient_checkpointing_recomputes_the_adapter_that_was_on():
    # A reference pass with the adapter off between forward and backward must not leak into the recomputation.
    gradients = []
    for checkpointing in (False, True):
        lora = Lora(r=4, seed=0, init=False)
        policy = ModelBuilder(TinyRandom(), lora, "none", gradient_checkpointing=checkpointing)().policy
        out = policy.train()(pairs())
        AdapterDisabled(policy)(pairs())
        out.sum().sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiled_layers_give_the_same_numbers():
    plain = ModelBuilder(TinyRandom(), LORA, "frozen")()
    compiled = ModelBuilder(TinyRandom(), LORA, "frozen", compile=True)()
    assert plain.policy.state_dict().keys() == compiled.policy.state_dict().keys()
    for seed in (0, 1):  # another shape
        torch.testing.assert_close(compiled.policy(pairs(seed)).token, plain.policy(pairs(seed)).token)
        torch.testing.assert_close(compiled.reference(pairs(seed)).token, plain.reference(pairs(seed)).token)
    for models in (plain, compiled):
        models.policy.train()(pairs()).sum().sum().backward()
    for (name, first), second in zip(plain.policy.named_parameters(), compiled.policy.parameters(), strict=True):
        if first.requires_grad:
            torch.testing.assert_close(second.grad, first.grad, rtol=1e-4, atol=1e-5, msg=name)


# Special tokens and dtypes


def test_model_and_tokenizer_agree_on_special_tokens():
    model, tokenizer = TinyRandom().load(), TinyRandom().tokenizer()
    model.generation_config.eos_token_id = [77, 3]
    model.config.pad_token_id = model.generation_config.pad_token_id = 3
    align_with_tokenizer(model, tokenizer)
    assert model.generation_config.eos_token_id == [3, 77]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id == 0


def test_an_added_padding_token_gets_a_row(tmp_path):
    TinyRandom().load().save_pretrained(tmp_path)
    TinyRandom().tokenizer().save_pretrained(tmp_path)
    policy = ModelBuilder(Pretrained(str(tmp_path), pad_token="<|new|>"), None, "none")().policy
    assert policy.base.get_input_embeddings().weight.shape[0] == 261
    assert policy(pairs()).token.isfinite().all()


def test_casting_keeps_rotary_frequencies():
    cast = ModelBuilder(TinyRandom(), None, "frozen")()
    cast.policy.to(torch.bfloat16)
    cast.reference.to(dtype=torch.bfloat16)
    for model in (cast.policy.base, cast.reference.actor.base):
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32
        assert model.dtype == torch.bfloat16
    loaded = ModelBuilder(TinyRandom(dtype="bfloat16"), None, "none")().policy
    assert torch.equal(cast.policy(pairs()).token, loaded(pairs()).token)
    keep_float32_buffers(cast.policy)  # again: no effect
    assert type(cast.policy.base.model.rotary_emb).__mro__.count(nn.Module) == 1
