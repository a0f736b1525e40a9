"""Buffers that must stay in float32 when a model is cast to half precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, cast

import torch
from torch import Tensor, nn


class _KeepsFloat32(nn.Module):
    """Mixed into a module's class: a cast moves its computed buffers and leaves their dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: self._buffers[name] for name in _computed(self)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            cast = self._buffers[name]
            if buffer is not None and cast is not None and cast.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(cast.device)
        return self


def keep_float32_buffers(model: nn.Module) -> None:
    """Make buffers that a model computes from its configuration survive ``model.to(torch.bfloat16)``.

    The frequencies of rotary embeddings are such buffers. Loaded in bfloat16, transformers keeps them in float32;
    a later cast of the whole module, which is how Lightning's ``bf16-true`` works, rounds them to 8 bits, so that
    angles at position 1000 are off by radians. No error is raised and the loss looks plausible.
    """
    for module in list(model.modules()):
        if _computed(module) and not isinstance(module, _KeepsFloat32):
            module.__class__ = _keeping(cast("Hashable", type(module)))


def _computed(module: nn.Module) -> list[str]:
    """Names of the float32 buffers that are not in state dicts."""
    names = module._non_persistent_buffers_set
    return [name for name in names if getattr(module._buffers.get(name), "dtype", None) == torch.float32]


@functools.cache
def _keeping(kind: Any) -> type[nn.Module]:
    return type(kind.__name__, (_KeepsFloat32, kind), {"__module__": kind.__module__})
