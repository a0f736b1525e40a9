"""KL(policy || reference) over the whole vocabulary from an actor, against plain loops over full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.modes import evaluating, set_gradient_checkpointing
from rlhf_lightning.models.roles.reference import AdapterDisabled, FrozenCopy
from rlhf_lightning.ops.log_probs import BLOCK_BYTES, MIN_BLOCK
from rlhf_lightning.types import Example, PackedBatch, SequencePredictions
from tests.helpers.tiny_models import tiny_model

GROUPS = [Example([5, 9, 3], [[4, 8, 2], [7, 2]]), Example([6, 1, 1, 9, 30], [[12, 2], [3, 3, 44, 18, 2]])]
TEMPERATURE = 0.7
#: Some families compute their norms in float32 whatever the weights are.
EXACT = {"atol": 1e-6, "rtol": 1e-5}
HEADS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "lm_head"]},  # LoRA on the head
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},  # a trained copy of the head
]


@pytest.fixture
def batch() -> PackedBatch:
    return pack(GROUPS)


def rows(model: Any, temperature: float) -> Tensor:
    """Log-softmax at every response token, one response at a time, from transformers' own logits."""
    out = []
    for group in GROUPS:
        for response in group.responses:
            logits = model(input_ids=torch.tensor([group.prompt + response]), use_cache=False).logits[0]
            out.append((logits[len(group.prompt) - 1 : -1] / temperature).log_softmax(-1))
    return torch.cat(out)


def dense(policy: Any, reference: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    log_p = rows(policy, temperature)
    return (log_p.exp() * (log_p - reference.detach())).sum(-1)


def reference_kl(actor: Any, reference: Any, batch: PackedBatch, temperature: float = TEMPERATURE) -> Tensor:
    predicted = reference(batch, temperature=temperature, inside=SequencePredictions.detached)
    return actor(batch, temperature=temperature, against=predicted).reference_kl


def same_gradients(model: Any, actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    up = torch.linspace(-1, 1, len(actual), dtype=actual.dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad((up * expected).sum(), trained, allow_unused=True)
    gradients = torch.autograd.grad((up * actual).sum(), trained, allow_unused=True)
    assert any(gradient is not None and bool(gradient.abs().max() > 1e-3) for gradient in gradients)
    for want, got in zip(wanted, gradients, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi", "cohere"])
def test_values_and_gradients_are_those_of_full_logits(family: str, backend: Any, batch: PackedBatch) -> None:
    """Tied heads, a soft-cap, a bias, a scale. Fails for KL(reference || policy), or without the temperature."""
    # On padded rows of float64 Gemma 2 gives nan in transformers 5.23.
    dtype, tolerance = (torch.float32, {"atol": 1e-5, "rtol": 1e-4}) if family == "gemma2" else (torch.float64, EXACT)
    actor = Actor(tiny_model(family).to(dtype), backend=backend)
    frozen = FrozenCopy(Actor(tiny_model(family, seed=1).to(dtype), backend=backend))
    actual, expected = reference_kl(actor, frozen, batch), dense(actor.base, rows(frozen.actor.base, TEMPERATURE))
    torch.testing.assert_close(actual, expected, **tolerance)
    assert bool((actual > 1e-3).all())
    same_gradients(actor, actual, expected, **tolerance)


def test_a_model_of_an_unknown_family_is_compared_through_its_own_logits(batch: PackedBatch) -> None:
    actor, frozen = Actor(tiny_model("bloom").double()), FrozenCopy(Actor(tiny_model("bloom", seed=1).double()))
    actual, expected = reference_kl(actor, frozen, batch), dense(actor.base, rows(frozen.actor.base, TEMPERATURE))
    torch.testing.assert_close(actual, expected, **EXACT)
    same_gradients(actor, actual, expected, **EXACT)


@pytest.mark.parametrize("options", [{"target_modules": "all-linear"}, *HEADS], ids=["layers", "lora", "copy"])
def test_the_base_is_the_reference_of_an_adapter(options: dict[str, Any], batch: PackedBatch) -> None:
    """An adapter of the head must not reach the reference, whose head is used while the adapter is on again."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, init_lora_weights=False, **options)
    model: Any = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config).double()
    if "modules_to_save" in options:
        with torch.no_grad():
            model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(0.5)
    actor: Any = Actor(model)
    with model.disable_adapter():
        base = rows(model, TEMPERATURE)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    actual = reference_kl(actor.train(), AdapterDisabled(actor), batch)
    torch.testing.assert_close(actual, dense(model, base), **EXACT)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable
    same_gradients(actor, actual, dense(model, base), **EXACT)


@pytest.mark.parametrize("kind", ["separate", "shared", "hydra", "adapter"])
def test_every_kind_of_critic_leaves_it_as_it_is(kind: Any, batch: PackedBatch) -> None:
    def adapted(seed: int) -> Any:
        model = tiny_model("llama", tie_word_embeddings=False)
        return Lora(r=4, seed=seed, init=False).apply(model) if kind == "adapter" else model

    actor = ActorCritic(adapted(0), kind=kind, layers=1)
    frozen = FrozenCopy(ActorCritic(adapted(3), kind=kind, layers=1).policy_copy())
    with torch.no_grad():
        for parameter in frozen.actor.parameters():
            parameter.mul_(0.9)
    expected = reference_kl(actor, frozen, batch)
    predicted = frozen(batch, temperature=TEMPERATURE, inside=SequencePredictions.detached)
    with evaluating(actor):
        log_probs, values = actor(batch, values=True, temperature=TEMPERATURE, against=predicted)
    torch.testing.assert_close(log_probs.reference_kl, expected)
    assert torch.equal(log_probs.token, actor(batch, temperature=TEMPERATURE).token)
    assert values.shape == (1, len(batch.target))
    assert bool((expected > 1e-4).all())


def test_activation_checkpointing_changes_nothing(batch: PackedBatch) -> None:
    frozen, gradients = FrozenCopy(Actor(tiny_model("llama", seed=1))), []
    for on in (False, True):
        actor = Actor(tiny_model("llama")).train()
        set_gradient_checkpointing(actor.base, on)
        reference_kl(actor, frozen, batch).sum().backward()
        gradients.append([parameter.grad for parameter in actor.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_policy_is_at_no_distance_from_its_copy_and_moves_away(batch: PackedBatch) -> None:
    actor = Actor(tiny_model("llama"))
    frozen = FrozenCopy.of(actor)
    torch.testing.assert_close(reference_kl(actor, frozen, batch), torch.zeros(len(batch.target)), atol=1e-6, rtol=0)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(1.1)
    assert bool((reference_kl(actor, frozen, batch) > 1e-4).all())
    frozen.refresh(actor)
    torch.testing.assert_close(reference_kl(actor, frozen, batch), torch.zeros(len(batch.target)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_under_autocast_and_in_the_weights(dtype: torch.dtype, batch: PackedBatch) -> None:
    actor, frozen = Actor(tiny_model("llama").to(dtype)), FrozenCopy(Actor(tiny_model("llama", seed=1).to(dtype)))
    exact = reference_kl(Actor(tiny_model("llama")), FrozenCopy(Actor(tiny_model("llama", seed=1))), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kl = reference_kl(actor, frozen, batch)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, exact, atol=0.05, rtol=0.1)


def test_nothing_of_tokens_times_vocabulary_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither saved for the backward pass nor made at once: the widest product is a block."""
    vocabulary, widest, saved, linear = 8 * MIN_BLOCK, [0], [0], torch.nn.functional.linear
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 1)

    def spy(*given: Any) -> Tensor:
        made = linear(*given)
        widest[0] = max(widest[0], made.numel())
        return made

    def pack_saved(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            saved[0] = max(saved[0], tensor.numel())
        return tensor

    groups = pack([Example([5, 9], [list(range(3, 103)), list(range(50, 110))])])
    tokens = len(groups.target)
    options = {"vocab_size": vocabulary, "max_position_embeddings": 256, "tie_word_embeddings": True}
    actor, frozen = (Actor(tiny_model("llama", seed=seed, **options)) for seed in (0, 1))
    weights = {parameter.data_ptr() for model in (actor, frozen) for parameter in model.parameters()}
    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    with torch.autograd.graph.saved_tensors_hooks(pack_saved, lambda tensor: tensor):
        kl = reference_kl(actor, FrozenCopy(frozen), groups)
    kl.sum().backward()
    assert widest[0] == tokens * MIN_BLOCK
    assert 0 < saved[0] < tokens * MIN_BLOCK < tokens * vocabulary


def test_sampled_estimators_agree_in_the_mean() -> None:
    """Over every token that may be drawn k1 has the value and k2 the gradient."""
    vocabulary, prompt = 61, [5, 9, 3]
    every = pack([Example(prompt, [[token] for token in range(vocabulary)])])
    actor, frozen = (Actor(tiny_model("llama", seed=seed).double()) for seed in (0, 1))
    reference = FrozenCopy(frozen)
    exact = reference_kl(actor, reference, every)
    log_ratio = actor(every, temperature=TEMPERATURE).token - reference(every, temperature=TEMPERATURE).token
    policy = actor(every, temperature=TEMPERATURE).token.detach().exp()
    torch.testing.assert_close(exact, exact[:1].expand(vocabulary))
    torch.testing.assert_close((policy * log_ratio).sum(), exact[0], **EXACT)
    head = actor.base.get_output_embeddings().weight
    (wanted,) = torch.autograd.grad(exact[0], head, retain_graph=True)
    (gradient,) = torch.autograd.grad((policy * log_ratio.square() / 2).sum(), head)
    torch.testing.assert_close(gradient, wanted, **EXACT)
    assert bool(wanted.abs().max() > 1e-3)
