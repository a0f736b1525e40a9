"""Adapters that vLLM cannot follow are refused before weights load, or at the first sync by what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig

from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.adapters.start import rewrites_base
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import ReferenceKind
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rollout.vllm_adapters import check_adapter, check_policy

#: Options of an adapter with which it is more than low-rank updates of its base, and what is told.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pissa": ({"init": "pissa"}, r"adapter.init=pissa changes the base's weights"),
    "pissa_fast": ({"init": "pissa_niter_4"}, r"adapter.init=pissa_niter_4 changes the base's weights"),
    "olora": ({"init": "olora"}, r"adapter.init=olora changes the base's weights"),
    "dora": ({"dora": True}, r"adapter.dora is more than that"),
    "modules": ({"modules_to_save": ["lm_head"]}, r"adapter.modules_to_save is more than that"),
    "tokens": ({"options": {"trainable_token_indices": [5]}}, r"adapter.options.trainable_token_indices is more"),
    "biases": ({"options": {"bias": "all"}}, r"adapter.options.bias=all trains weights of the base"),
    "rank": ({"r": 600}, r"vLLM's largest rank is 512"),
    "one_rank": ({"options": {"rank_pattern": {"q_proj": 600}}}, r"vLLM's largest rank is 512"),
}
FOLLOWED: list[dict[str, Any]] = [
    {},
    {"init": False},
    {"init": "gaussian"},
    {"init": "orthogonal", "r": 8},
    {"rslora": True, "options": {"rank_pattern": {"q_proj": 2}}},
]


def policy_of(adapter: Lora | None) -> Any:
    return ModelBuilder(TinyRandom(), adapter, ReferenceKind.NONE)().policy


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_low_rank_update_of_its_base(name: str) -> None:
    options, reason = REFUSED[name]
    for serves_base in (True, False):
        with pytest.raises(ValueError, match=rf"rollout.lora=true .*{reason}.*: set rollout.lora=false"):
            check_adapter(Lora(**options), lora=True, serves_base=serves_base)
    check_adapter(Lora(**options), lora=False, serves_base=True)  # merged weights are right


@pytest.mark.parametrize("options", FOLLOWED, ids=str)
def test_what_is_one(options: dict[str, Any]) -> None:
    check_adapter(Lora(**options), lora=True, serves_base=True)
    check_policy(policy_of(Lora(**options, seed=0)))


def test_a_saved_adapter_is_what_its_folder_says(tmp_path: Path) -> None:
    for name, config in {
        "pissa": LoraConfig(init_lora_weights="pissa", target_modules=["q_proj"]),
        "ia3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        "plain": LoraConfig(target_modules=["q_proj"]),
    }.items():
        peft.get_peft_model(TinyRandom().load(), config).save_pretrained(tmp_path / name)
    check_adapter(Lora(path=str(tmp_path / "plain")), lora=True, serves_base=True)
    for name, reason in (("pissa", "adapter.init=pissa changes"), ("ia3", "the adapter is of kind IA3")):
        adapter = Lora(path=str(tmp_path / name))
        with pytest.raises(ValueError, match=reason):
            check_adapter(adapter, lora=True, serves_base=True)
        with pytest.raises(ValueError, match=reason):
            check_policy(policy_of(adapter))


def test_a_quantised_base_must_be_the_servers() -> None:
    for lora, serves_base in ((False, False), (False, True), (True, False)):
        with pytest.raises(ValueError, match=r"a quantised base .* rollout.lora=true and rollout.url"):
            check_adapter(Lora(quantize="nf4"), lora=lora, serves_base=serves_base)
    check_adapter(Lora(quantize="nf4"), lora=True, serves_base=True)


def test_no_adapter_to_send() -> None:
    with pytest.raises(ValueError, match=r"rollout.lora=true needs an adapter: set adapter=lora"):
        check_adapter(None, lora=True, serves_base=True)
    check_adapter(None, lora=False, serves_base=False)


def test_other_weights_that_are_trained() -> None:
    policy = policy_of(Lora(seed=0))
    policy.base.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 other weights are trained, for example .*model.norm.weight"):
        check_policy(policy)


def test_trying_a_start_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert rewrites_base(LoraConfig(init_lora_weights="pissa"))
    assert torch.equal(torch.rand(2), expected)
    with pytest.raises(ValueError, match=r"cannot start a layer with adapter.init=corda: .*preprocess_corda"):
        rewrites_base(LoraConfig(init_lora_weights="corda", corda_config=CordaConfig()))
