"""Sharded tensors of a checkpoint: whole in a file, in parts in a folder of shards, for any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from rlhf_lightning.rounds.record import checksum
from rlhf_lightning.sharded_state import gathered, put_back, room_for, taken_out
from tests.helpers.jobs import ranks

WEIGHT, BIAS = torch.arange(15.0).view(5, 3), torch.arange(2.0)  # neither divides among the processes evenly


def tree(mesh: Any) -> dict[str, Any]:
    weight, bias = (distribute_tensor(tensor.clone(), mesh, [Shard(0)]) for tensor in (WEIGHT, BIAS.bfloat16()))
    return {"callbacks": {"EMA": {"weights": {"a.weight": weight, "a.bias": bias}}}, "step": 3, "own": [BIAS, None]}


def saved(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, state = dist.get_rank(), tree(init_device_mesh("cpu", (dist.get_world_size(),)))
    whole = gathered(state, keep=rank == 0)["callbacks"]["EMA"]["weights"]
    if rank == 0:
        assert torch.equal(whole["a.weight"], WEIGHT)
        assert torch.equal(whole["a.bias"], BIAS.bfloat16())
    else:
        assert whole == {"a.weight": None, "a.bias": None}
    rest, shards = taken_out(state)
    assert isinstance(state["callbacks"]["EMA"]["weights"]["a.weight"], DTensor), "the state itself stays"
    assert rest["step"] == 3
    save({"sharded": shards}, checkpoint_id=folder / "shards")
    if rank == 0:
        torch.save(rest, folder / "rest.pt")


def summed(values: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(values)
    return values


def loaded(folder: Path, groups: int = 1) -> None:
    dist.init_process_group("gloo")
    shape = (dist.get_world_size(),) if groups == 1 else (groups, dist.get_world_size() // groups)
    mesh = init_device_mesh("cpu", shape)
    rest = torch.load(folder / "rest.pt", weights_only=True)
    room = room_for(rest, mesh)
    load({"sharded": room}, checkpoint_id=folder / "shards")
    state = put_back(rest, room)
    weights = state["callbacks"]["EMA"]["weights"]
    assert weights["a.weight"].to_local().shape[0] < 5, "every process holds its part"
    assert torch.equal(weights["a.weight"].full_tensor(), WEIGHT)
    assert torch.equal(weights["a.bias"].full_tensor(), BIAS.bfloat16())
    assert torch.equal(state["own"][0], BIAS)
    assert checksum(iter(weights.items()), summed) == checksum(
        iter({"a.weight": WEIGHT, "a.bias": BIAS.bfloat16()}.items()), summed
    )


def test_two_processes_write_what_three_read(tmp_path):
    assert ranks(2, saved, tmp_path) == [0, 0]
    assert ranks(3, loaded, tmp_path) == [0, 0, 0]


def test_two_processes_write_what_two_groups_of_two_read(tmp_path):
    """Each group holds every tensor once; fails when a checksum counts it once a group."""
    assert ranks(2, saved, tmp_path) == [0, 0]
    assert ranks(4, loaded, tmp_path, 2) == [0] * 4
