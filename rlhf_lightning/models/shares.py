"""Weights that every process reads its share of: a model is built empty, sharded, and then filled from its files.

:func:`reading_shares` asks the sources of models for it. What they then give has parameters without storage and real
buffers, and knows of each parameter where in a safetensors file it lies (:class:`Piece`); copies of the model know it
too. :func:`read_shares` fills what FSDP2 has sharded: each process reads the rows that it keeps. A model that cannot
be loaded this way is loaded whole, with a sentence in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from rlhf_lightning.sharded_state import as_sharded

log = logging.getLogger(__name__)

#: Attribute of a module: the pieces of its parameters that are not read yet, by name.
_UNREAD = "unread_weights"
_ASKED: ContextVar[bool] = ContextVar("reading_shares", default=False)


class Whole(Exception):  # noqa: N818 - no error: it ends in a model that is loaded whole
    """Reason why a model has to be loaded whole by every process."""


@dataclass(frozen=True)
class Piece:
    """One weight in a safetensors file.

    Attributes:
        file: that holds it.
        name: of the weight in the file.
        dtype: that the model is loaded in.
    """

    file: str
    name: str
    dtype: torch.dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> Piece:
        return self


class Reader:
    """Safetensors files, of which one is open at a time: what is mapped of a file counts as the process's memory."""

    def __init__(self) -> None:
        self._path = ""
        self._open: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def file(self, path: str) -> Any:
        """The open file at a path."""
        if path != self._path:
            self._stack.close()
            self._open, self._path = self._stack.enter_context(safe_open(path, framework="pt")), path
        return self._open

    def rows(self, piece: Piece, start: int | None = None, end: int | None = None) -> Tensor:
        """Some rows of a weight, in the dtype that the model is loaded in; all of them by default.

        They are a copy: what safetensors gives may lie in the file, which somebody may replace.
        """
        saved = self.file(piece.file).get_slice(piece.name)
        rows: Tensor = saved[:] if start is None else saved[start:end]
        return rows.to(piece.dtype, copy=True)


@contextmanager
def reading_shares() -> Iterator[None]:
    """Models are loaded empty while this is open, and filled by :func:`read_shares` after they are sharded."""
    token = _ASKED.set(True)
    try:
        yield
    finally:
        _ASKED.reset(token)


@contextmanager
def reading_whole() -> Iterator[None]:
    """Models are loaded whole while this is open."""
    token = _ASKED.set(False)
    try:
        yield
    finally:
        _ASKED.reset(token)


def asked() -> bool:
    """Return whether models are to be loaded empty."""
    return _ASKED.get()


def log_whole(name: str, reason: object) -> None:
    """Log why every process loads all of a model before it is sharded."""
    log.info("%-9s every process loads all of %s before it is sharded: %s", "weights", name, reason)


def mark(module: nn.Module, name: str, piece: Piece) -> None:
    """Note where a parameter without storage is to be read."""
    vars(module).setdefault(_UNREAD, {})[name] = piece


def unread(module: nn.Module) -> list[tuple[nn.Module, str, Piece]]:
    """The parameters that are to be read: owner, name and piece; a tied one at each of its pending."""
    return [(part, name, piece) for part in module.modules() for name, piece in vars(part).get(_UNREAD, {}).items()]


def check_readable(policy: nn.Module) -> None:
    """Refuse a model with parameters that nobody can read.

    Raises:
        Whole: something was made of weights that are not there yet.
    """
    readable = {id(getattr(part, name)) for part, name, _ in unread(policy)}
    for name, parameter in policy.named_parameters():
        if parameter.is_meta and id(parameter) not in readable:
            raise Whole(f"{name} is made of other weights")


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Parameters without storage as tensors of the CPU, for code that looks at a layer's device, size and dtype.

    One number stands for all of a tensor. It is nan, so that what would be computed from a weight shows.
    """
    pending = unread(model)
    made: dict[int, nn.Parameter] = {}
    for part, name, _ in pending:
        empty = getattr(part, name)
        if id(empty) not in made:
            one = torch.full((), torch.nan, dtype=empty.dtype).expand(empty.shape)
            made[id(empty)] = nn.Parameter(one, requires_grad=empty.requires_grad)
        setattr(part, name, made[id(empty)])
    try:
        yield
    finally:
        emptied: dict[int, nn.Parameter] = {}
        for part, name, _ in pending:
            held = getattr(part, name)
            if id(held) not in emptied:
                emptied[id(held)] = nn.Parameter(held.detach().to("meta"), requires_grad=held.requires_grad)
            setattr(part, name, emptied[id(held)])


@torch.no_grad()
def read_shares(module: nn.Module, *, cpu_offload: bool = False) -> None:
    """Read this process's rows of every sharded parameter that is not read yet; not a collective call.

    Args:
        module: sharded by FSDP2.
        cpu_offload: its shards stay in host memory.
    """
    filled: dict[int, nn.Parameter] = {}  # a tied weight once
    replaced: list[nn.Parameter] = []  # held, so that their addresses are not used again
    with Reader() as reader:
        for part, name, piece in sorted(unread(module), key=lambda each: each[2].file):
            weight = getattr(part, name)
            if id(weight) not in filled:
                start, end = _local_rows(weight)
                device = "cpu" if cpu_offload else weight.device_mesh.device_type
                rows = reader.rows(piece, start, end) if end > start else torch.empty(0, *weight.shape[1:])
                shard = as_sharded(rows.to(device=device, dtype=weight.dtype), weight)
                filled[id(weight)] = nn.Parameter(shard, requires_grad=weight.requires_grad)
                replaced.append(weight)
            part.load_state_dict({name: filled[id(weight)]}, strict=False, assign=True)
            filled[id(getattr(part, name))] = filled[id(weight)]
    for part in module.modules():
        vars(part).pop(_UNREAD, None)


def _local_rows(weight: DTensor) -> tuple[int, int]:
    """First row of a sharded tensor that is this process's, and the one after the last."""
    start, count = 0, weight.shape[0]
    for dimension, placement in enumerate(weight.placements):
        if isinstance(placement, Shard):
            each = -(-count // weight.device_mesh.size(dimension))
            before = min(each * weight.device_mesh.get_local_rank(dimension), count)
            start, count = start + before, min(each, count - before)
    return start, start + count
