"""Ranks of an aligned model's tokens under its base."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lightning.callbacks import TokenShift
from rlhf_lightning.callbacks.token_shift import shares
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.models.roles.reference import FrozenCopy
from rlhf_lightning.types import Example, PromptForm


def actor(seed: int) -> Actor:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=40, **sizes, **heads, eos_token_id=2, bos_token_id=1, initializer_range=0.3)
    return Actor(LlamaForCausalLM(config))


def measured(policy: Actor, reference: Actor | None, prompts: list[list[int]]) -> tuple[dict[str, float], Any]:
    logged: dict[str, float] = {}
    drawn: list[list[int]] = []

    def sample(ids: list[list[int]], **options: Any) -> list[list[int]]:
        drawn.extend(generate(policy, ids, **options))
        return drawn

    module = SimpleNamespace(
        policy=policy,
        reference=None if reference is None else FrozenCopy(reference),
        device=torch.device("cpu"),
        sample=sample,
        track=lambda name, value: logged.update({name.removeprefix("val/token_shift/"): float(value)}),
    )
    module.placed_reference = lambda: module.reference
    data = SimpleNamespace(val_examples=[Example(ids, [[2]]) for ids in prompts], prompt_form=PromptForm())
    trainer: Any = SimpleNamespace(sanity_checking=False, datamodule=data)
    callback = TokenShift(pack, prompts=3, max_new_tokens=6, batch_size=2, buckets=(0, 2))
    callback.on_validation_start(trainer, module)
    callback.on_validation_epoch_end(trainer, module)
    return logged, drawn


PROMPTS = [[1, 5, 6], [1, 5, 6], [1, 7], [1, 9, 11, 12], [1, 30]]


def test_a_base_never_disagrees_with_itself():
    logged, drawn = measured(actor(0), actor(0), PROMPTS)
    assert len(drawn) == 3  # different prompts
    assert (logged["unshifted"], logged["marginal"], logged["shifted"]) == (1, 0, 0)
    assert logged["unshifted_error"] == 0


@torch.no_grad()
def test_ranks_are_those_of_the_whole_distribution():
    base = actor(1)
    logged, drawn = measured(actor(0), base, PROMPTS)
    ranks = []
    for prompt, ids in zip([PROMPTS[0], *PROMPTS[2:4]], drawn, strict=True):
        logits = base.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        ranks.append(1 + (logits > logits.gather(1, torch.tensor(ids)[:, None])).sum(1))
    rank = torch.cat(ranks)
    assert logged["tokens"] == len(rank)
    assert logged["shifted"] == pytest.approx(float((rank > 3).double().mean()))
    assert logged["marginal"] == pytest.approx(float(((rank > 1) & (rank <= 3)).double().mean()))
    first = torch.cat([one[:2] for one in ranks])
    assert logged["unshifted/0_1"] == pytest.approx(float((first == 1).double().mean()))
    assert {name for name in logged if name.startswith("shifted/")} == {"shifted/0_1", "shifted/2_end"}


def test_golden_error_of_a_share():
    """Responses of 1 and 3 tokens with 1 and 0 hits: p = 1/4, residuals 3/4 and -3/4, over 4 tokens."""
    measured = shares(torch.tensor([0, 3, 1, 2]), torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 2]), (0, 1))
    assert (measured["unshifted"], measured["marginal"], measured["shifted"]) == (0.25, 0.5, 0.25)
    assert measured["unshifted_error"] == pytest.approx(0.75 * math.sqrt(2) / 4)
    assert (measured["unshifted/0_0"], measured["marginal/1_end"]) == (0.5, 1.0)


def test_it_needs_a_model_to_compare_with():
    with pytest.raises(ValueError, match="reference=frozen"):
        measured(actor(0), None, PROMPTS)
    with pytest.raises(ValueError, match="must begin with 0"):
        TokenShift(pack, buckets=(5, 20))
