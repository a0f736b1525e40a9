"""Merged weights, in every place that takes them, and every form of export against plain transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.adapters.merging import merged_weights, tied_names
from rlhf_lightning.models.export.cast_copy import CastCopy
from rlhf_lightning.models.export.policy import check_export, export
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.rollout.weights import policy_weights, write_config, write_weights
from tests.helpers.tiny_models import MIXTURES, tiny_model

IDS = torch.tensor([[1, 5, 9, 33, 7, 21]])
TOKENIZER = prepare_tokenizer(byte_tokenizer())
ATTENTION = ["q_proj", "v_proj"]
EMBEDDING = ["embed_tokens", "wte"]

#: Settings of LoRA, by name; r is 4.
LORAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "biases": {"options": {"bias": "lora_only"}},
    "all_biases": {"options": {"bias": "all"}},
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": EMBEDDING},
    "both": {"modules_to_save": [*EMBEDDING, "lm_head"]},
    "both_tied": {"modules_to_save": EMBEDDING, "options": {"ensure_weight_tying": True}},
    "norms": {"modules_to_save": ["norm"]},
    "lora_embedding": {"target_modules": ["q_proj", *EMBEDDING]},
    "lora_both": {"target_modules": ["q_proj", *EMBEDDING, "lm_head"]},
    "lora_both_tied": {"target_modules": ["q_proj", *EMBEDDING], "options": {"ensure_weight_tying": True}},
    "tokens": {"options": {"trainable_token_indices": [5, 7]}},
    "pissa": {"init": "pissa"},
    "ranks": {"options": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}},
}

#: Further kinds of adapters, which come as a folder (``adapter.path``).
KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(target_modules=[*ATTENTION, "down_proj"], feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(target_modules=ATTENTION, r=0, oft_block_size=4),
    "boft": lambda: peft.BOFTConfig(target_modules=ATTENTION, boft_block_size=4),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj", "o_proj"], r=4),
    "loha": lambda: peft.LoHaConfig(target_modules=ATTENTION, r=4),
    "lokr": lambda: peft.LoKrConfig(target_modules=ATTENTION, r=4),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=ATTENTION, init_r=4, target_r=2, total_step=10),
    "hra": lambda: peft.HRAConfig(target_modules=ATTENTION, r=4),
    "norm": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "fourier": lambda: peft.FourierFTConfig(target_modules=ATTENTION, n_frequency=20),
    "miss": lambda: peft.MissConfig(target_modules=ATTENTION, r=4),
    "vblora": lambda: peft.VBLoRAConfig(target_modules=["q_proj"], r=2, num_vectors=8, vector_length=8, topk=2),
    "randlora": lambda: peft.RandLoraConfig(target_modules=["q_proj"], r=4),
    "shira": lambda: peft.ShiraConfig(target_modules=["q_proj"], r=4),
    "road": lambda: peft.RoadConfig(target_modules=["q_proj"], group_size=4),
    "trainable_tokens": lambda: peft.TrainableTokensConfig(token_indices=[5, 7]),
}

#: What runs by default; the rest is slow.
QUICK = {"plain", "dora", "all_biases", "head", "lora_embedding", "lora_both_tied", "tokens", "ia3", "vera", "vblora"}


def some(kinds: Iterable[str], quick: set[str] = QUICK) -> list[Any]:
    """Parameters of a test, slow but for a few."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


#: Settings that train a tied head apart of its embedding.
APART = {"head", "embedding", "both", "lora_embedding", "lora_both"}


def folder_of(family: str, folder: Path) -> Path:
    """The base, as a folder that anybody loads."""
    tiny_model(family).save_pretrained(folder / "base")
    return folder / "base"


def moved(model: Any) -> Actor:
    """The policy after some training: every weight that trains is somewhere else."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)
    return Actor(model).eval()


def adapted(base: Path, adapter: Lora) -> Actor:
    return moved(adapter.apply(AutoModelForCausalLM.from_pretrained(base)))


def other_kind(kind: str, base: Path, folder: Path) -> Actor:
    """A policy whose adapter is no LoRA: PEFT wrote it, and ``adapter.path`` reads it."""
    torch.manual_seed(0)
    config = KINDS[kind]()
    config.task_type = "CAUSAL_LM"
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder / "start")
    return adapted(base, Lora(path=str(folder / "start")))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def check_all(policy: Actor, base: Path, folder: Path) -> None:
    """Every form and every place agrees with the policy, which stays as it is to the bit."""
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    expected = logits(policy.model)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-2
    check_export(policy, TOKENIZER, "merged")

    def agrees(model: Any) -> None:
        torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-5)

    agrees(AutoModelForCausalLM.from_pretrained(export(policy, TOKENIZER, folder / "merged", form="merged")))
    plain = AutoModelForCausalLM.from_pretrained(base)
    agrees(peft.PeftModel.from_pretrained(plain, export(policy, TOKENIZER, folder / "adapter", form="adapter")))
    copied = CastCopy(policy, torch.float32)
    copied.refresh(policy)
    agrees(copied.model)
    (folder / "vllm").mkdir()
    write_config(policy, folder / "vllm")
    write_weights(policy_weights(policy), folder / "vllm", "float32")
    agrees(AutoModelForCausalLM.from_pretrained(folder / "vllm"))
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert torch.equal(logits(policy.model), expected)


def stored(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("kind", some(LORAS))
def test_lora_on_a_tied_model(kind: str, tmp_path: Path) -> None:
    base = folder_of("llama", tmp_path)
    policy = adapted(base, Lora(r=4, seed=0, **LORAS[kind]))
    check_all(policy, base, tmp_path)
    # A head that is the embedding is stored once; one that was trained apart says so.
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config
    assert config.tie_word_embeddings is (kind not in APART)
    for name in ("merged", "vllm"):
        assert ("lm_head.weight" in stored(tmp_path / name)) is (kind in APART)
    assert bool(tied_names(policy.base)) is (kind not in APART)


@pytest.mark.parametrize("kind", some(KINDS))
def test_other_kinds_of_adapters(kind: str, tmp_path: Path) -> None:
    base = folder_of("llama", tmp_path)
    check_all(other_kind(kind, base, tmp_path), base, tmp_path)
    assert "lm_head.weight" not in stored(tmp_path / "merged")


@pytest.mark.parametrize(
    "kind", some(["plain", "dora", "all_biases", "both_tied", "lora_both", "tokens"], {"all_biases", "lora_both"})
)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_lora_on_other_families(family: str, kind: str, tmp_path: Path) -> None:
    """Biases; and gpt2's transposed weights, with a tied head."""
    base = folder_of(family, tmp_path)
    check_all(adapted(base, Lora(r=4, seed=0, **LORAS[kind])), base, tmp_path)


@pytest.mark.parametrize("kind", some(["plain", "all_biases", "head"], {"plain"}))
@pytest.mark.parametrize("family", MIXTURES)
def test_experts(family: str, kind: str, tmp_path: Path) -> None:
    """Experts have a wrapper for each of their parameters, one in the other."""
    base = folder_of(family, tmp_path)
    policy = adapted(base, Lora(r=4, seed=0, **LORAS[kind]))
    check_all(policy, base, tmp_path)
    assert stored(tmp_path / "vllm") == stored(base)  # as checkpoints have them, expert by expert


def test_experts_that_are_named(tmp_path: Path) -> None:
    """``target_parameters``, also without any adapted layer."""
    base = folder_of("mixtral", tmp_path)
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    policy = adapted(base, Lora(r=4, seed=0, target_modules=[], options={"target_parameters": parameters}))
    check_all(policy, base, tmp_path)
    weights, before = merged_weights(policy.base), tiny_model("mixtral").state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.{i}.mlp.{name}" for i in range(2) for name in parameters}


def test_what_peft_cannot_merge_is_refused_before_training(tmp_path: Path) -> None:
    policy = adapted(folder_of("llama", tmp_path), Lora(r=4, options={"lora_bias": True}))  # its layers have no bias
    check_export(policy, TOKENIZER, "auto")
    with pytest.raises(ValueError, match=r"cannot merge this adapter.*no bias.*form=adapter"):
        check_export(policy, TOKENIZER, "merged")


def test_an_adapter_that_is_no_wrapper_of_layers_is_refused(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder_of("llama", tmp_path))
    policy = adapted(tmp_path / "base", Lora(r=4))
    policy.base.model.layers[0].mlp = nn.Sequential(model.model.layers[0].mlp)  # as llama-adapters do
    with pytest.raises(ValueError, match=r"changes the model's layers.*form=adapter"):
        check_export(policy, TOKENIZER, "merged")


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    policy = moved(Lora(r=4, seed=0).apply(model))
    merged = AutoModelForCausalLM.from_pretrained(
        export(policy, TOKENIZER, tmp_path / "out", form="merged"), dtype="auto"
    )
    assert merged.dtype == torch.bfloat16
    plain = policy.model.merge_and_unload().state_dict()  # PEFT's own, in place
    assert all(torch.equal(value, plain[name]) for name, value in merged.state_dict().items())
