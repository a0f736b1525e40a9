"""Actor and critic in one forward: four kinds that agree at the start, who trains what, copies and exports."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.export.policy import export
from rlhf_lightning.models.modes import set_gradient_checkpointing
from rlhf_lightning.models.roles.reference import FrozenCopy
from rlhf_lightning.models.scorers.scorer import ScalarHead, Scorer
from rlhf_lightning.models.sources import Pretrained, TinyRandom
from rlhf_lightning.types import Example
from tests.helpers.tiny_models import CONFIGS, UNPACKABLE, tiny_model

GROUPS = [Example([5, 9, 3], [[4, 8, 2], [7, 2]]), Example([6, 1, 1, 9, 30], [[12, 2], [3, 3, 44, 18, 2]])]
KINDS = ("separate", "shared", "hydra", "adapter")
#: What stands behind the last layer is no plain norm: no upper layers of its own.
NO_HYDRA = {"opt"}


def made(kind: str, family: str = "llama", *, lora: bool | None = None, **options: Any) -> ActorCritic:
    """On the same weights whatever the kind; the adapter kind needs an adapter, which starts at nothing."""
    model = tiny_model(family)
    model = Lora(r=4, seed=3).apply(model) if (kind == "adapter" if lora is None else lora) else model
    options = {"layers": 1, "head": "rsqrt", "seed": 1} | options
    return ActorCritic(model, kind=kind, **options)


def plain_values(family: str, seed: int = 1) -> Tensor:
    """From plain unpadded forward passes: a head on the state before each token."""
    model, out = tiny_model(family), []
    size = model.get_output_embeddings().weight.shape[1]
    head = ScalarHead(size, init="rsqrt", seed=seed)
    for group in GROUPS:
        for response in group.responses:
            ids = torch.tensor([group.prompt + response])
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            out.append(head(hidden[len(group.prompt) - 1 : -1])[:, 0])
    return torch.cat(out).detach()


@pytest.mark.parametrize("backend", ["packed", "padded"])
@pytest.mark.parametrize("family", CONFIGS)
def test_all_kinds_start_with_the_same_values_and_log_probs(family: str, backend: str) -> None:
    """Fails when a value is read at its own token, when a branch starts one layer off, or when a norm is left out."""
    expected, batch = plain_values(family), pack(GROUPS)
    log_probs = Actor(tiny_model(family), backend=backend)(batch).token
    for kind in KINDS:
        if kind == "hydra" and family in NO_HYDRA:
            with pytest.raises(ValueError, match=r"method.critic.kind=hydra does not know"):
                made(kind, family)
            continue
        if kind == "adapter" and family == "gpt2":  # Conv1D layers are no targets of all-linear
            continue
        policy, values = made(kind, family, backend=backend)(batch, values=True)
        torch.testing.assert_close(values[0], expected, atol=3e-5, rtol=1e-4, msg=lambda m, k=kind: f"{k}: {m}")
        torch.testing.assert_close(policy.token, log_probs, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("family", UNPACKABLE)
def test_families_that_cannot_be_packed(family: str) -> None:
    batch = pack(GROUPS)
    log_probs, values = made("shared", family)(batch, values=True)
    torch.testing.assert_close(values[0], plain_values(family), atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(log_probs.token, Actor(tiny_model(family))(batch).token, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_values_start_at_zero_by_default(kind: str) -> None:
    """Detail 11."""
    _, values = made(kind, head="auto", outputs=2)(pack(GROUPS), values=True)
    assert values.shape == (2, 12)
    assert not values.any()


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_statistics_and_the_lack_of_log_probs(kind: str) -> None:
    actor, batch = made(kind), pack(GROUPS)
    plain = Actor(actor.model)(batch, temperature=0.7, statistics=frozenset({"entropy"}))
    log_probs, values = actor(batch, values=True, temperature=0.7, statistics=frozenset({"entropy"}))
    torch.testing.assert_close(log_probs.token, plain.token)
    torch.testing.assert_close(log_probs.entropy, plain.entropy)
    nothing, alone = actor(batch, values=True, log_probs=False)
    assert nothing is None
    torch.testing.assert_close(alone, values)
    torch.testing.assert_close(actor(batch).token, Actor(actor.model)(batch).token)


def gradients(actor: ActorCritic) -> set[str]:
    _, values = actor.train()(pack(GROUPS), values=True)
    values.square().sum().backward()
    return {n for n, p in actor.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize(
    ("kind", "lora", "options", "trunk"),
    [
        ("separate", False, {}, False),
        ("separate", True, {}, False),
        ("shared", False, {}, True),
        ("shared", False, {"detach": True}, False),
        ("hydra", False, {}, True),
        ("hydra", False, {"detach": True}, False),
        ("adapter", True, {}, False),
    ],
)
def test_what_a_value_trains(kind: str, lora: bool, options: dict[str, Any], trunk: bool) -> None:
    actor = made(kind, lora=lora, **options)
    moved = gradients(actor)
    critic = {name for name in moved if actor.of_critic(name)}
    assert critic
    assert bool(moved - critic) == trunk
    if kind == "hydra" and trunk:  # below the branch only, not the layer that the critic has a copy of
        assert not any(".layers.1." in name for name in moved - critic)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_log_prob_trains_is_not_the_critics(kind: str) -> None:
    actor = made(kind, lora=True)
    log_probs, _ = actor.train()(pack(GROUPS), values=True)
    log_probs.sum().sum().backward()
    moved = {n for n, p in actor.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved
    assert not any(actor.of_critic(name) for name in moved)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_has_no_critic_and_follows_the_policy(kind: str) -> None:
    actor = made(kind, lora=True)
    reference, batch = FrozenCopy.of(actor), pack(GROUPS)
    assert type(reference.actor) is Actor
    assert not [name for name, _ in reference.actor.named_parameters() if actor.of_critic(name)]
    before = reference(batch).token.clone()
    assert torch.equal(before, actor.eval()(batch).token)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.requires_grad else 0.0)
    assert torch.equal(reference(batch).token, before)
    reference.refresh(actor)
    torch.testing.assert_close(reference(batch).token, actor(batch).token)


@pytest.mark.parametrize("kind", ["separate", "shared", "hydra"])
def test_an_export_is_the_policy_alone(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = TinyRandom()
    actor = ActorCritic(source.load(), kind=kind, layers=1, head="rsqrt", seed=0)
    export(actor, source.tokenizer(), tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    ids = torch.tensor([[1, 50, 60]])
    assert torch.equal(loaded(ids).logits, actor.base(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_an_exported_adapter_is_the_policys(kind: str, form: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = TinyRandom()
    base = source.load()
    model = Lora(r=4, seed=3, init=False).apply(copy.deepcopy(base))
    actor = ActorCritic(model, kind=kind, layers=1, head="rsqrt", seed=0)
    ids = torch.tensor([[1, 50, 60]])
    expected = actor.eval().model(ids).logits
    export(actor, source.tokenizer(), tmp_path / form, form=form)  # type: ignore[arg-type]
    files = sorted(path.name for path in tmp_path.rglob("*") if "critic" in path.name)
    assert not files
    if form == "merged":
        loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / form)
    else:
        loaded = PeftModel.from_pretrained(base, tmp_path / form)
        assert list(loaded.peft_config) == ["default"]
    torch.testing.assert_close(loaded.eval()(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_critic_starts_from_a_reward_model_and_its_head(tmp_path: Path) -> None:
    """Values before a token are what the reward model says there, in its normalised units."""
    source, batch = TinyRandom(), pack(GROUPS)
    reward = Scorer(TinyRandom(seed=9).load(), seed=2)
    reward.mean, reward.std = 0.5, 2.0
    export_scorer(reward, source.tokenizer(), tmp_path)
    weights = Pretrained(str(tmp_path))
    kept = ActorCritic(source.load(), source=weights)
    _, values = kept(batch, values=True)
    torch.testing.assert_close(values[0], reward.normalized(reward(batch, "source")))
    _, zero = ActorCritic(source.load(), source=weights, head="zeros")(batch, values=True)
    assert not zero.any()
    two = ActorCritic(source.load(), source=[weights, weights], outputs=2, head="keep")
    _, both = two(batch, values=True)
    assert torch.equal(both[0], both[1])
    small = ActorCritic(source.load(), source=weights, adapter=Lora(r=2, seed=0))
    trained = {n for n, p in small.critics.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name or ".head." in name for name in trained)


def test_an_adapter_critic_starts_from_a_reward_models_adapter(tmp_path: Path) -> None:
    """On the policy's base, beside the policy's adapter, which it does not touch; trained with its head."""
    source, batch = TinyRandom(), pack(GROUPS)
    source.load().save_pretrained(tmp_path / "base")
    source.tokenizer().save_pretrained(tmp_path / "base")
    base = Pretrained(str(tmp_path / "base"))
    reward = Scorer(Lora(r=3, seed=9, init=False).apply(base.load()), seed=2)
    reward.mean, reward.std = 0.5, 2.0
    export_scorer(reward, source.tokenizer(), tmp_path / "reward", form="adapter")
    policy = Lora(r=4, seed=3, init=False).apply(base.load())
    alone = Actor(copy.deepcopy(policy))(batch).token
    critic = Lora(path=str(tmp_path / "reward"))
    actor = ActorCritic(policy, kind="adapter", head="keep", adapter=critic)
    log_probs, values = actor(batch, values=True)
    assert torch.equal(log_probs.token, alone)
    torch.testing.assert_close(values[0], reward.normalized(reward(batch, "source")))
    values.sum().backward()
    moved = {name for name, p in actor.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved
    assert all(".critic0." in name or "value_heads" in name for name in moved)
    assert all(p.requires_grad == ("lora_" in name or "value_heads" in name) for name, p in actor.named_parameters())
    zero = ActorCritic(Lora(r=4).apply(base.load()), kind="adapter", head="zeros", adapter=critic)
    assert not zero(batch, values=True)[1].any()


def test_adapters_that_no_critic_can_start_from(tmp_path: Path) -> None:
    source = TinyRandom()
    for name, adapter in (("plain", Lora(r=2)), ("wide", Lora(r=2, modules_to_save=["lm_head"]))):
        export(Actor(adapter.apply(source.load())), source.tokenizer(), tmp_path / name, form="adapter")
    for name, message in (("plain", "no reward model's"), ("wide", "changes more than layers")):
        with pytest.raises(ValueError, match=message):
            ActorCritic(
                Lora(r=4).apply(source.load()), kind="adapter", head="keep", adapter=Lora(path=str(tmp_path / name))
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "other"}, "separate, shared, hydra, adapter"),
        ({"kind": "shared", "source": TinyRandom()}, "kind=separate, not kind=shared"),
        ({"head": "keep"}, "give a reward model as method.critic.source"),
        ({"source": TinyRandom(), "head": "keep"}, "has no head"),
        ({"kind": "adapter"}, "adapter=lora"),
        ({"kind": "separate", "detach": True}, "shares no layer"),
        ({"kind": "hydra", "layers": 2}, "fewer than it has"),
        ({"outputs": 2, "source": [TinyRandom()]}, "names 1 models for 2 critics"),
        ({"source": TinyRandom(config={"vocab_size": 300})}, "the same vocabulary"),
    ],
)
def test_what_does_not_go_together_says_what_does(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActorCritic(TinyRandom().load(), **options)


def test_the_adapter_kind_refuses_activation_checkpointing() -> None:
    actor = made("adapter").train()
    set_gradient_checkpointing(actor.base, True)
    with pytest.raises(ValueError, match=r"kind=adapter and model.gradient_checkpointing=true"):
        actor(pack(GROUPS), values=True)
