"""One copy of a base in memory for several models that stand on it, each with an adapter of its own.

Models are loaded apart, by whoever needs them, and so each brings a copy of the base. Where both are frozen and equal
to the bit one of the copies is given up; nothing else about the models changes, so nobody has to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from rlhf_lightning.models.loading.naming import plain_name, transformers_model


@torch.no_grad()
def share_base(model: nn.Module, other: nn.Module) -> int:
    """Let frozen weights of a model lie where equal weights of another do.

    Weights are compared by value, under the names that they have in the trunk, so that a wrong guess about where a
    model comes from cannot change a number. Trained, sharded and quantised weights stay where they are.

    Args:
        model: whose weights move; frozen ones only.
        other: whose weights stay; it may be trained meanwhile, but for the weights that are shared.

    Returns:
        Bytes that were given up.
    """
    kept = dict(_frozen(other))
    saved = 0
    for name, weight in _frozen(model):
        twin = kept.get(name)
        if twin is None or twin.data_ptr() == weight.data_ptr() or not _alike(weight, twin):
            continue
        if torch.equal(weight, twin):
            weight.data = twin.data
            saved += weight.nbytes
    return saved


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Plain weights of a model's trunk that are not trained, by transformers' names."""
    whole = transformers_model(model)
    trunk = getattr(whole, whole.base_model_prefix, whole)
    for name, weight in trunk.named_parameters():
        if type(weight) is nn.Parameter and type(weight.data) is Tensor and not weight.requires_grad:
            yield plain_name(name), weight


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device, one.stride()) == (other.shape, other.dtype, other.device, other.stride())


def stored_bytes(models: Iterable[nn.Module]) -> int:
    """Bytes of all parameters of some models, each storage counted once."""
    storages = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for model in models
        for weight in model.parameters()
    }
    return sum(storages.values())
