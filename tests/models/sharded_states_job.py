"""Job of ``test_sharded_states.py`` in two processes: fits of hidden states, sharded, against one process."""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rlhf_lightning import losses
from rlhf_lightning.methods import ContrastedModels, InstructedRepresentation
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.roles.models import shard
from rlhf_lightning.models.sharding import reshard, whole
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.kinds import step

TINY = TinyRandom(hidden_size=16, intermediate_size=32, layers=4)
ADAPTER = Lora(r=2, alpha=4, seed=1)
#: Method, model, reference. Blocks 1 and 3 of 4 are read: the pass ends below the last block.
CASES: dict[str, tuple[type, TinyRandom, str]] = {
    "instructions": (InstructedRepresentation, TINY, "auto"),
    "frozen_copy": (InstructedRepresentation, TINY, "frozen"),
    "checkpointing": (InstructedRepresentation, TinyRandom(**{**vars(TINY), "gradient_checkpointing": True}), "auto"),
    "two_models": (ContrastedModels, TINY, "teacher"),
}
LAYERS = (1, 3)


def module(name: str) -> Any:
    """The module of a case, whose models are loaded."""
    method, source, kind = CASES[name]
    teacher = TinyRandom(**{**vars(source), "seed": 7}) if kind == "teacher" else None
    made = method(
        ModelBuilder(source, ADAPTER, kind, teacher=teacher),
        partial(losses.representation_fit, alpha=2.0),
        partial(torch.optim.AdamW, lr=0.01, eps=1e-4),
        layers=LAYERS,
    )
    made.configure_model()
    return made


def same(output: Any, expected: Any, tolerance: float) -> None:
    """Loss and diagnostics of a micro-batch."""
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=tolerance)
    assert output.diagnostics.keys() == expected.diagnostics.keys()
    for name, value in expected.diagnostics.items():
        torch.testing.assert_close(output.diagnostics[name], value, rtol=0, atol=tolerance, msg=name)


def trained(made: Any, batches: list[Any], optimizer: torch.optim.Optimizer) -> None:
    """One optimiser step, of the mean over micro-batches of which this process has some."""
    for batch in batches:
        (made(batch).loss / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad()


def check(name: str) -> None:
    """Losses, two steps of training and a validation of a sharded module equal those of a whole one."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (dist.get_world_size(),))
    one, sharded = module(name), module(name)
    shard(SimpleNamespace(policy=sharded.policy, reference=sharded.reference, earlier={}, start=None), mesh)
    assert isinstance(sharded.policy, FSDPModule)
    if isinstance(sharded.reference, torch.nn.Module):
        assert isinstance(sharded.reference.actor, FSDPModule)
    entered = []
    for number, block in enumerate(decoder_layers(sharded.policy), start=1):
        block.register_forward_pre_hook(lambda *_, number=number: entered.append(number))
    optimizers = [made.configure_optimizers() for made in (one, sharded)]
    before = {key: value.clone() for key, value in weights(one).items()}
    for _ in range(2):
        parts = step(one.kind, 8, 2)
        assert len(parts) == dist.get_world_size()
        same(sharded(parts[rank]), one(parts[rank]), 1e-5)
        trained(one, parts, optimizers[0])
        trained(sharded, parts[rank : rank + 1], optimizers[1])
        assert all(isinstance(parameter, DTensor) for parameter in sharded.policy.parameters())
    assert set(entered) == {1, 2, 3}, "a block above the last one that is read was entered"
    reshard(sharded.policy)
    after, expected = weights(sharded), weights(one)
    assert after.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5, msg=key)
        assert (value - before[key]).abs().max() > 1e-3, f"{key} did not learn"

    # all blocks again, for log-probs
    one.eval(), sharded.eval()
    with torch.no_grad():
        batch = step(one.kind, 6)[0]
        same(sharded(batch), one(batch), 1e-4)
    assert 4 in entered
    assert len(decoder_layers(sharded.policy)) == 4


def weights(made: Any) -> dict[str, torch.Tensor]:
    """Trained weights by name, gathered."""
    return {key: whole(value) for key, value in made.policy.named_parameters() if value.requires_grad}


def main() -> None:
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    for name in sys.argv[1:] or CASES:
        check(name)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
