"""Tensors that FSDP2 sends under mixed precision and activation checkpointing; the numbers are those of one process."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import Models, shard
from rlhf_lightning.models.roles.reference import placed
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sharding import reshard, unsharded, whole, whole_weights
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.gathers import Sent, sent
from tests.helpers.jobs import ranks
from tests.models.pairs import pairs

BF16 = torch.bfloat16
LAYERS = 3


def built(**options: object) -> Models:
    options = {"layers": LAYERS} | options
    return ModelBuilder(TinyRandom(**options), None, "frozen")()


def loss(policy: torch.nn.Module) -> Tensor:
    return (policy(pairs(3)).sum() * torch.tensor([1.0, -1.0] * 3)).sum() / 100


def gradients(policy: torch.nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in policy.named_parameters() if p.grad is not None}


def one_step(models: Models, compute: torch.dtype | None) -> Sent:
    """Tensors sent in a step of a sharded policy."""
    shard(models, init_device_mesh("cpu", (2,)), compute=compute)
    with sent() as seen:
        loss(models.policy.train()).backward()
    return seen


def joined(function) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    function()


def same_numbers_from_half_the_bytes() -> None:
    one, full, mixed, plain = built(), built(), built(), built()
    in_float32 = one_step(full, None)
    in_half = one_step(mixed, BF16)
    assert in_float32.dtypes("gathered") == {torch.float32}
    assert in_half.dtypes("gathered") == {BF16}
    assert in_half.dtypes("reduced") == {torch.float32}
    assert 2 * in_half.bytes("gathered") == in_float32.bytes("gathered")
    assert in_half.bytes("reduced") == in_float32.bytes("reduced")

    with torch.autocast("cpu", dtype=BF16):
        expected, reference = one.policy(pairs(3)).token, one.reference(pairs(3)).token
        loss(one.policy.train()).backward()
    # The weights of norms and embeddings are rounded too, so the difference is one of rounding: of the same size as
    # that of autocast from float32.
    rounding = (expected - full.policy(pairs(3)).token).abs().max().item()
    for policy, target in ((mixed.policy, expected), (mixed.reference, reference)):
        torch.testing.assert_close(policy(pairs(3)).token, target, rtol=0, atol=2 * rounding)
    torch.testing.assert_close(mixed.policy(pairs(3)).token, mixed.reference(pairs(3)).token, rtol=0, atol=0)
    assert rounding < 0.1
    reshard(mixed.policy)
    loss(plain.policy.train()).backward()
    obtained, wanted, exact = (gradients(models.policy) for models in (mixed, one, plain))
    assert obtained.keys() == wanted.keys() == exact.keys()
    for name, gradient in obtained.items():
        assert gradient.dtype == torch.float32
        apart, rounded = (gradient - wanted[name]).norm(), (wanted[name] - exact[name]).norm()
        assert apart < 2 * rounded < 0.1 * exact[name].norm(), f"{name}: {apart}, {rounded}, {exact[name].norm()}"
    mixed.policy(pairs(3))  # leaves the root gathered
    assert placed(mixed.reference, mixed.policy) is mixed.reference
    reshard(mixed.reference)
    assert {p.dtype for p in mixed.reference.parameters()} == {torch.float32}


def gathered_for_decoding_in_half_and_read_in_float32() -> None:
    one, mixed = built(tie_embeddings=True), built(tie_embeddings=True)
    shard(mixed, init_device_mesh("cpu", (2,)), compute=BF16)
    weights = {name: weight.detach().clone() for name, weight in one.policy.named_parameters()}
    before = dict(mixed.policy.named_parameters())
    with whole_weights(mixed.policy):
        for name, weight in mixed.policy.named_parameters():
            assert torch.equal(weight, weights[name]), name
    after = dict(mixed.policy.named_parameters())
    assert all(after[name] is weight and isinstance(weight, DTensor) for name, weight in before.items())
    with unsharded(mixed.policy):
        assert {p.dtype for p in mixed.policy.parameters()} == {BF16}
    texts = generate(mixed.policy, [[1, 50, 60], [1, 70]][dist.get_rank() :], max_new_tokens=6, temperature=0.0)
    with torch.autocast("cpu", dtype=BF16):
        score = {len(prompt): one.policy.model(torch.tensor([prompt])).logits for prompt in ([1, 70],)}
    assert texts[-1][0] == int(score[2][0, -1].argmax())


def heads_stay_in_float32() -> None:
    for maker in (partial(Scorer, seed=1), partial(ActorCritic, head="inverse")):
        critic = maker.func is ActorCritic
        one, mixed = (ModelBuilder(TinyRandom(layers=LAYERS), None, "none")(maker) for _ in range(2))
        options = {"values": True} if critic else {}
        shard(mixed, init_device_mesh("cpu", (2,)), compute=BF16)
        with sent() as seen:
            output = mixed.policy(pairs(3), **options)
        assert seen.dtypes("gathered") == {BF16, torch.float32}
        assert sum(dtype == torch.float32 for dtype, _ in seen.gathered) == 1, "the root's group alone"
        with torch.autocast("cpu", dtype=BF16):
            expected = one.policy(pairs(3), **options)
        scores, wanted = (each[1] if critic else each for each in (output, expected))
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, wanted, rtol=0, atol=0.05)


def checkpointing_gathers_no_more() -> None:
    counts, obtained = {}, {}
    for checkpointing in (False, True):
        models = built(gradient_checkpointing=checkpointing)
        entered: list[int] = []
        inner = next(part for part in models.policy.modules() if type(part).__name__ == "LlamaMLP")
        inner.register_forward_pre_hook(lambda *_, entered=entered: entered.append(1))
        counts[checkpointing] = len(one_step(models, None).gathered)
        assert len(entered) == (2 if checkpointing else 1), "a layer is computed again, from inside its own hooks"
        obtained[checkpointing] = gradients(models.policy)
        groups = [part for part in models.policy.modules() if isinstance(part, FSDPModule)]
        assert len(groups) == LAYERS + 1
    # Every layer is gathered for the forward and for the backward pass, the root once, with or without checkpointing.
    assert counts == {False: 2 * LAYERS + 1, True: 2 * LAYERS + 1}
    torch.testing.assert_close(obtained[True], obtained[False])


def adapters_in_half() -> None:
    source, adapter = TinyRandom(layers=LAYERS, dtype="bfloat16"), Lora(r=2, seed=0, init=False)
    models = ModelBuilder(source, adapter, "frozen")()
    assert one_step(models, BF16).dtypes("gathered") == {BF16}
    assert all(gradient.dtype == torch.float32 for gradient in gradients(models.policy).values())


def test_half_the_bytes_are_gathered_and_the_numbers_are_those_of_one_process():
    assert ranks(2, joined, same_numbers_from_half_the_bytes) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        gathered_for_decoding_in_half_and_read_in_float32,
        heads_stay_in_float32,
        checkpointing_gathers_no_more,
        adapters_in_half,
    ],
    ids=lambda case: case.__name__,
)
def test_in_two_processes(case):
    assert ranks(2, joined, case) == [0, 0]


def test_one_process_is_not_changed():
    policy = built().policy
    assert isinstance(policy, Actor)
    with whole_weights(policy), unsharded(policy):
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
