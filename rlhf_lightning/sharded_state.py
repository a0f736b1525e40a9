"""Sharded tensors anywhere in a checkpoint: gathered for a file, written in parts to a folder of shards.

Beside weights and optimiser a checkpoint holds what callbacks and modules keep of every weight: an average, a reference
that moved. Of a sharded model these are sharded too, and no process ever holds all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros

#: Key of a mapping that stands where a sharded tensor was: the tensor's name among the shards.
_STANDS_FOR = "_sharded_"


def gathered(tree: Any, *, keep: bool) -> Any:
    """A checkpoint with every sharded tensor whole, one at a time; a collective call.

    Args:
        tree: nested containers, equal in every process but for what tensors hold.
        keep: this process writes the checkpoint; in the others gathered tensors are freed at once and become None.
    """

    def gather(path: str, tensor: DTensor) -> Tensor | None:
        whole = tensor.full_tensor()
        return whole.cpu() if keep else None

    return _replaced(tree, DTensor, gather)


def taken_out(tree: Any) -> tuple[Any, dict[str, DTensor]]:
    """A checkpoint without its sharded tensors, and these by name."""
    shards: dict[str, DTensor] = {}

    def take(path: str, tensor: DTensor) -> dict[str, Any]:
        shards[path] = tensor
        return {_STANDS_FOR: path, "shape": list(tensor.shape), "dtype": tensor.dtype}

    return _replaced(tree, DTensor, take), shards


def room_for(tree: Any, mesh: DeviceMesh) -> dict[str, DTensor]:
    """Sharded tensors to load into, by name, for what :func:`taken_out` left in a checkpoint.

    Args:
        tree: the checkpoint without them.
        mesh: the processes that share each tensor's first dimension, as FSDP2 does: those of its last dimension, each
            group of which holds the whole tensor. Their number may be another one.
    """
    placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    return {
        node[_STANDS_FOR]: zeros(node["shape"], dtype=node["dtype"], device_mesh=mesh, placements=placements)
        for node in _placeholders(tree)
    }


def put_back(tree: Any, shards: Mapping[str, DTensor]) -> Any:
    """The checkpoint that :func:`taken_out` was given."""
    return _replaced(tree, dict, lambda path, node: shards[node[_STANDS_FOR]], _is_placeholder)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, without its gradient; all of one that is not sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def holds_first(tensor: Tensor) -> bool:
    """Check whether this process is the first of those that hold its part of a tensor; True of one that is whole."""
    if not isinstance(tensor, DTensor):
        return True
    coordinate = tensor.device_mesh.get_coordinate() or ()
    return all(at == 0 for at, kind in zip(coordinate, tensor.placements, strict=True) if kind.is_replicate())


def like(whole: Tensor, weight: Tensor) -> Tensor:
    """A tensor on a weight's device, sharded as the weight is; one that is sharded already stays so."""
    if isinstance(whole, DTensor):
        return whole.to(local(weight).device)
    whole = whole.to(weight.device)
    if not isinstance(weight, DTensor):
        return whole
    return torch.distributed.tensor.distribute_tensor(whole, weight.device_mesh, weight.placements)


def as_sharded(shard: Tensor, weight: Tensor) -> Tensor:
    """A process's part of something, as the sharded tensor that it belongs to; a whole one as it is.

    Args:
        shard: this process's part.
        weight: what it is like.
    """
    if not isinstance(weight, DTensor):
        return shard
    return DTensor.from_local(
        shard, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride(), run_check=False
    )


def _is_placeholder(node: Any) -> bool:
    return isinstance(node, dict) and _STANDS_FOR in node


def _placeholders(tree: Any) -> Iterator[dict[str, Any]]:
    if _is_placeholder(tree):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _placeholders(inner)


def _replaced(
    tree: Any, kind: type, new: Callable[[str, Any], Any], condition: Callable[[Any], bool] = lambda node: True
) -> Any:
    """Nested dicts, lists and tuples with some of their nodes replaced, given their path; the tree itself stays."""

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, kind) and condition(node):
            return new(path, node)
        if type(node) is dict:
            return {key: walk(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(walk(value, f"{path}[{number}]") for number, value in enumerate(node))
        return node

    return walk(tree, "")
