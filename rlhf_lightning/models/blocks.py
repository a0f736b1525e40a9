"""The decoder blocks of a transformer: which modules they are, where they lie, and by which numbers they are called.

A layer is called by the number of its block, from 1; its states are that block's output.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import is_
from typing import cast

from torch import nn


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer, sharded or not, outermost only, in order."""
    names = {
        name
        for part in module.modules()
        if hasattr(part, "_no_split_modules")
        for name in cast("Collection[str]", part._no_split_modules or ())
    }
    layers: list[nn.Module] = []
    inside: set[int] = set()
    for part in module.modules():  # parents before children
        if id(part) not in inside and any(kind.__name__ in names for kind in type(part).__mro__):  # FSDP2 subclasses
            layers.append(part)
            inside.update(id(child) for child in part.modules())
    return layers


def block_list(trunk: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The list of a trunk's decoder blocks, the module that holds it, and by which name.

    Raises:
        ValueError: the blocks do not lie in one list.
    """
    blocks = decoder_layers(trunk)
    for holder in trunk.modules():
        for name, part in holder._modules.items():
            if isinstance(part, nn.ModuleList) and len(part) == len(blocks) and all(map(is_, part, blocks)):
                return holder, name, part
    raise ValueError(f"the decoder blocks of {type(trunk).__name__} are not known, so no layer of it can be read")


def check_layers(option: str, layers: Sequence[int], count: int | None = None) -> None:
    """Refuse layers that a model does not have.

    Args:
        option: that names them, for the error.
        layers: numbers of decoder blocks.
        count: of the model's blocks; None: not known yet.

    Raises:
        ValueError: there is none, one comes twice, or the model has no such block.
    """
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"{option}={list(layers)}: name at least one layer, and each once")
    highest = "" if count is None else str(count)
    if outside := sorted(layer for layer in layers if layer < 1 or (count is not None and layer > count)):
        raise ValueError(
            f"{option}={list(layers)}: there is no layer {outside[0]}. Layers are numbers of decoder blocks, "
            f"1 .. {highest}"
        )
