"""Three kinds of reference with one set of numbers, and how one is refreshed."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.reference import AdapterDisabled, Cached
from rlhf_lightning.models.sources import TinyRandom
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
