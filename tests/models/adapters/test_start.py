"""The reference is the initial policy: what an adapter does at its start decides which form of it a run gets."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import TrainableTokensConfig, get_peft_model

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.adapters.start import adapter_start
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models
from rlhf_lightning.models.sources import TinyRandom
from tests.models.pairs import pairs


class TrainsNorms(Lora):
    """An adapter of somebody else's, which trains the norms of the base beside LoRA."""

    def apply(self, model: Any) -> Any:
        adapted = super().apply(model)
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name.endswith("layernorm.weight"))
        return adapted


def lora(**options: Any) -> Lora:
    return Lora(r=4, seed=0, **options)


def train(models: Models) -> None:
    """A few large steps, so that the policy is somewhere else."""
    optimizer = torch.optim.SGD([p for p in models.policy.parameters() if p.requires_grad], lr=0.5)
    for seed in range(2):
        (-models.policy.train()(pairs(seed)).mean().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()


def check_reference(models: Models) -> None:
    """The reference equals the policy to the bit at the start, and does not move with it."""
    batch = pairs(5)
    start = models.policy.eval()(batch).token.detach()
    assert torch.equal(models.reference(batch).token, start)
    train(models)
    assert torch.equal(models.reference(batch).token, start)
    assert (models.policy.eval()(batch).token - start).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dora": True, "rslora": True},
        {"init": "gaussian", "dropout": 0.3},
        {"modules_to_save": ["lm_head", "norm"]},
        {"options": {"trainable_token_indices": [5, 80]}},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["lora", "dora", "gaussian", "modules_to_save", "token_deltas", "embeddings"],
)
def test_the_policy_without_its_adapter_where_that_is_the_initial_policy(options: dict[str, Any]) -> None:
    models = ModelBuilder(TinyRandom(), lora(**options), "auto")()
    assert models.reference.kind == "adapter_off"
    check_reference(models)


ELSEWHERE = {"pissa": {"init": "pissa"}, "olora": {"init": "olora"}, "random": {"init": False}}


@pytest.mark.parametrize("options", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_copy_where_the_adapter_starts_elsewhere(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        models = ModelBuilder(TinyRandom(), lora(**options), "auto")()
    assert models.reference.kind == "frozen"
    assert caplog.text.count("frozen copy of the initial policy") == 1
    check_reference(models)
    with pytest.raises(ValueError, match=r"adapter_off is not the initial policy.*adapter\.init.*reference=auto"):
        ModelBuilder(TinyRandom(), lora(**options), "adapter_off")()


@pytest.mark.parametrize(
    ("architecture", "adapter", "weight"),
    [
        ("qwen2", lora(options={"bias": "lora_only"}), r"6 of .*q_proj.*bias"),
        ("gpt2", lora(options={"bias": "all"}), r"bias"),
        ("llama", TrainsNorms(r=4, seed=0), r"4 of .*layernorm"),
    ],
)
def test_a_copy_where_weights_beneath_the_adapter_are_trained(architecture: str, adapter: Lora, weight: str) -> None:
    source = TinyRandom(architecture=architecture)
    models = ModelBuilder(source, adapter, "auto")()
    assert models.start.difference == 0
    assert models.reference.kind == "frozen"
    check_reference(models)
    with pytest.raises(ValueError, match=f"adapter_off is not the initial policy.*{weight}"):
        ModelBuilder(source, adapter, "adapter_off")()


def test_an_adapter_that_training_starts_from_is_part_of_the_reference(tmp_path: Path) -> None:
    lora(init=False).apply(TinyRandom().load()).save_pretrained(tmp_path)
    models = ModelBuilder(TinyRandom(), Lora(path=str(tmp_path)), "auto")()
    assert models.reference.kind == "frozen"
    check_reference(models)


def test_an_adapter_that_knows_a_few_tokens_is_not_overlooked(tmp_path: Path) -> None:
    """The row that both models read holds 16 tokens of the vocabulary; these are none of them."""
    config = TrainableTokensConfig(token_indices=[3, 200], target_modules=["embed_tokens"])
    model = get_peft_model(TinyRandom().load(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "tokens_delta" in name:
                parameter.add_(0.5)
    model.save_pretrained(tmp_path)
    models = ModelBuilder(TinyRandom(), Lora(path=str(tmp_path)), "auto")()
    assert models.start.difference == pytest.approx(0.5, abs=1e-6)
    assert models.reference.kind == "frozen"


def test_the_start_in_half_precision_is_what_counts() -> None:
    """DoRA starts as its base in float32; cast to bfloat16, as ``bf16-true`` does, its norms are rounded."""
    assert ModelBuilder(TinyRandom(), lora(dora=True), "auto")().reference.kind == "adapter_off"
    torch.set_default_dtype(torch.bfloat16)
    try:
        models = ModelBuilder(TinyRandom(), lora(dora=True), "auto")()
    finally:
        torch.set_default_dtype(torch.float32)
    assert models.reference.kind == "frozen"
    check_reference(models)


def test_the_comparison_leaves_the_policy_as_it_is() -> None:
    policy = ModelBuilder(TinyRandom(), lora(dropout=0.5), "none")().policy.train()
    required = [p.requires_grad for p in policy.parameters()]
    generator = torch.get_rng_state()
    adapter_start(policy)
    assert torch.equal(torch.get_rng_state(), generator)
    assert policy.training
    assert [p.requires_grad for p in policy.parameters()] == required
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("init", ["pissa", "olora", False])
def test_a_critics_adapter_does_not_change_the_policy(init: bool | str) -> None:
    """Started as the policy's was, it would take its share of the base that both stand on once more."""
    batch = pairs(4)
    alone = ModelBuilder(TinyRandom(), lora(init=init), "auto")()
    both = ModelBuilder(TinyRandom(), lora(init=init), "auto")(partial(ActorCritic, kind="adapter"))
    expected = alone.policy.eval()(batch).token
    assert torch.equal(both.policy.eval()(batch).token, expected)
    assert torch.equal(both.reference(batch).token, expected)


def test_a_base_that_was_drawn_otherwise_is_refused() -> None:
    """``pissa_niter_1`` takes a random part of the base; a checkpoint holds the adapter only."""
    first, same, other = (
        ModelBuilder(TinyRandom(), Lora(r=4, seed=seed, init="pissa_niter_1"), "none")().start for seed in (0, 0, 1)
    )
    same.check(first.state())
    with pytest.raises(ValueError, match=r"another base.*adapter\.seed.*ckpt_path=null"):
        other.check(first.state())
    with pytest.raises(ValueError, match=r"model\.name"):
        ModelBuilder(TinyRandom(seed=1), lora(), "none")().start.check(
            ModelBuilder(TinyRandom(), lora())().start.state()
        )
