"""Distillation, CoIN and ILQL on two processes that each hold half of every weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from rlhf_lightning.models.roles.models import Models, shard
from tests.helpers.hidden_rows import steps
from tests.helpers.jobs import ranks
from tests.methods.test_hidden_methods import METHODS, assert_same, gradients, module


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def job(name: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    batch = steps(METHODS[name][0].kind, 4)[0]
    single, sharded = module(name), module(name)
    shard(Models(sharded.policy, sharded.reference, None), init_device_mesh("cpu", (dist.get_world_size(),)))
    for _ in range(2):  # the second pass starts from a root that the first left gathered
        torch.testing.assert_close(sharded(batch).loss, single(batch).loss, atol=1e-5, rtol=1e-5)
    assert_same(gradients(single, [batch]), whole(gradients(sharded, [batch])))
    if name == "ilql":
        for made in (single, sharded):
            with torch.no_grad():
                for parameter in made.policy.q_heads.parameters():
                    parameter.mul_(0.5)
            made.policy.sync_targets(0.25)
        assert_same(dict(single.policy.target_heads.named_buffers()), dict(sharded.policy.target_heads.named_buffers()))
        prompts = [[1, 2], [3]]
        assert sharded.sample(prompts, beta=3.0, max_new_tokens=4) == single.sample(prompts, beta=3.0, max_new_tokens=4)
    (folder / f"rank{dist.get_rank()}").touch()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(name: str, tmp_path: Path) -> None:
    """The comparisons are in the job; a process that fails one ends with another exit code."""
    assert ranks(2, job, name, tmp_path) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2
