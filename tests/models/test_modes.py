"""Dropout, recomputed activations and compiled layers: what each of them changes, and what it must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.modes import disable_dropout
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import AdapterDisabled
from rlhf_lightning.models.sources import TinyRandom
from tests.models.pairs import pairs

LORA = Lora(r=4, seed=0)


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
