"""The actor around adapters, checkpointing, precision, and what it leaves behind for plain transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models import actor as actor_module
from rlhf_lightning.models import attention
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.ops.flex import flex as fused
from rlhf_lightning.types import Example, PackedBatch
from tests.helpers.one_row import one_row_at_a_time
from tests.helpers.tiny_models import VOCABULARY, tiny_model

GROUPS = [Example([5, 9, 3], [[4, 8, 2], [7, 2]]), Example([6, 1, 1, 9, 30], [[12, 2], [3, 3, 44, 18, 2]])]


@pytest.fixture
def batch() -> PackedBatch:
    return pack(GROUPS)


def lora(family: str = "llama", **options: object) -> torch.nn.Module:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **options)
    torch.manual_seed(0)
    return get_peft_model(tiny_model(family, tie_word_embeddings=False), config)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_adapter_on_and_off(family: str, backend: str, batch: PackedBatch) -> None:
    model = lora(family)
    actor = Actor(model, backend=backend)
    with_adapter = actor(batch)
    close(with_adapter.token, one_row_at_a_time(model, GROUPS))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        without = actor(batch, adapter=False)
    with model.disable_adapter():
        close(without.token, one_row_at_a_time(model, GROUPS))
    assert (without.token - with_adapter.token).abs().max() > 1e-3
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    with_adapter.token.sum().backward()  # the graph made before the switch is whole
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trainable)


def test_switching_the_adapter_off_keeps_a_frozen_adapter_frozen(batch: PackedBatch) -> None:
    model = lora().requires_grad_(False)
    Actor(model)(batch, adapter=False)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"]},  # LoRA on the head
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},  # a trained copy of the head
        {"target_modules": ["q_proj"], "trainable_token_indices": [2, 5]},
    ],
)
def test_head_that_is_more_than_a_weight(options: dict, batch: PackedBatch) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model("llama", tie_word_embeddings=False), LoraConfig(r=4, init_lora_weights=False, **options)
    )
    actor = Actor(model, backend="packed")
    expected = one_row_at_a_time(model, GROUPS)
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(expected.square().sum(), trained)
    out = actor(batch, statistics=frozenset({"entropy"}))
    close(out.token, expected)
    assert out.entropy is not None
    for got, want in zip(torch.autograd.grad(out.token.square().sum(), trained), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        base = one_row_at_a_time(model, GROUPS)
    close(actor(batch, adapter=False).token, base)


def test_adapter_off_needs_an_adapter(batch: PackedBatch) -> None:
    with pytest.raises(ValueError, match="frozen, cached"):
        Actor(tiny_model("llama"))(batch, adapter=False)


def test_prompt_learning_is_refused() -> None:
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="LoRA"):
        Actor(model)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt"])
@pytest.mark.parametrize("adapter", [False, True])
def test_activation_checkpointing_changes_nothing(family: str, adapter: bool, batch: PackedBatch) -> None:
    model = lora(family) if adapter else tiny_model(family)
    if adapter:
        model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    actor = Actor(model, backend="packed").train()
    trained = [p for p in model.parameters() if p.requires_grad]

    def run() -> tuple[Tensor, ...]:
        out = actor(batch)
        return out.token, *torch.autograd.grad(out.token.square().sum(), trained)

    plain = run()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for got, want in zip(run(), plain, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("family", "attention_name"),
    [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa"), ("mistral", "eager"), ("gemma2", "eager")],
)
def test_plain_transformers_after_training(
    family: str, attention_name: str, batch: PackedBatch, tmp_path: Path
) -> None:
    model = tiny_model(family)
    model.set_attn_implementation(attention_name)
    prompt = torch.tensor([[0, 0, 5, 9, 3], [7, 8, 9, 1, 4]])
    options = {
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5]),
        "max_new_tokens": 12,
        "do_sample": False,
        "eos_token_id": None,
    }
    before = model.generate(prompt, **options)
    logits = model(input_ids=prompt, attention_mask=options["attention_mask"]).logits
    actor = Actor(model, backend="packed")
    actor(batch).token.sum().backward()
    assert model.config._attn_implementation == attention_name
    assert torch.equal(actor.generate(prompt, **options), before)
    torch.testing.assert_close(model(input_ids=prompt, attention_mask=options["attention_mask"]).logits, logits)
    actor.model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()
    assert "attn_implementation" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention_name)
    assert torch.equal(again.generate(prompt, **options), before)


def test_a_copy_is_independent_and_still_packed(batch: PackedBatch) -> None:
    policy = Actor(tiny_model("mistral"), backend="packed")
    reference = copy.deepcopy(policy)
    first = policy(batch).token.detach()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(reference(batch).token, first)
    assert Actor(reference.model).backend == "packed"  # installing twice is harmless
    torch.testing.assert_close(Actor(reference.model)(batch).token, first)


@pytest.mark.parametrize("backend", ["packed", "padded"])
def test_bfloat16(backend: str, batch: PackedBatch) -> None:
    model = tiny_model("llama")
    expected = one_row_at_a_time(model, GROUPS)
    actor = Actor(model, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        out = actor(batch)
    assert out.token.dtype == torch.float32
    assert (out.token - expected).abs().max() < 0.25
    out.token.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    low = Actor(copy.deepcopy(model).bfloat16(), backend=backend)(batch)
    assert low.token.dtype == torch.float32
    assert (low.token - expected).abs().max() < 0.4


def test_attention_dropout_drops_and_its_limit_is_exact(batch: PackedBatch) -> None:
    model = tiny_model("mistral", attention_dropout=1e-9)  # takes the path of dropout, and drops nothing
    expected = one_row_at_a_time(model, GROUPS)
    actor = Actor(model, backend="packed").train()
    close(actor(batch).token, expected)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert (actor(batch).token - expected).abs().max() > 1e-2
    capped = Actor(tiny_model("gemma2", attention_dropout=0.1), backend="packed").train()
    with pytest.raises(ValueError, match="soft-cap"):
        capped(batch)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_flex_attention_sees_the_same_tokens(family: str, batch: PackedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    # The CUDA path: on a CPU flex attention runs forward only, which is enough to compare its masks and scores.
    model = tiny_model(family, head_dim=16)
    actor = Actor(model, backend="packed")
    calls = []

    def flex(query: Tensor, key: Tensor, value: Tensor, _: object, *, scale: float, window: object, softcap: object):
        calls.append(window)
        mask = attention.Layout.of(batch).block_mask(window)
        return fused(query[None], key[None], value[None], mask, scale=scale, softcap=softcap)[0]

    with torch.no_grad():
        expected = actor(batch).token
        monkeypatch.setattr(attention, "shared_prefix_attention", flex)
        close(actor(batch).token, expected)
    assert len(calls) == 2


def test_a_layer_that_asks_for_more_is_refused(batch: PackedBatch) -> None:
    model = tiny_model("llama")
    Actor(model, backend="packed")
    layer = model.model.layers[0].self_attn
    q = torch.randn(1, 4, len(batch.ids), 8)
    with pytest.raises(ValueError, match="s_aux"):
        attention.attention_forward(
            layer, q, q, q, None, shared_prefix=attention.SharedPrefix(attention.Layout.of(batch)), s_aux=torch.zeros(4)
        )


def test_padded_rows_by_hand() -> None:
    ids, mask = actor_module.padded(pack(GROUPS), padding=60)
    assert ids.tolist() == [
        [5, 9, 3, 4, 8, 2, 60, 60, 60, 60],
        [5, 9, 3, 7, 2, 60, 60, 60, 60, 60],
        [6, 1, 1, 9, 30, 12, 2, 60, 60, 60],
        [6, 1, 1, 9, 30, 3, 3, 44, 18, 2],
    ]
    assert torch.equal(mask, (ids != 60).long())
    assert VOCABULARY > 60
