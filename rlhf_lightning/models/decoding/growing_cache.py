"""Keys and values in buffers with room to spare: a decode step writes one token instead of copying all of them.

transformers' dynamic cache concatenates at every step, which costs as much as the step's matrix products for a small
model. These layers say of themselves what its layers say, so models make the same masks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

#: Tokens of room that a buffer is given at a time.
_ROOM = 128


def growing_cache(config: Any) -> DynamicCache | None:
    """An empty cache for a model, or None when one of its layers keeps something else than keys and values."""
    cache: Any = DynamicCache(config=config)
    if any(type(layer) not in {DynamicLayer, DynamicSlidingWindowLayer} for layer in cache.layers):
        return None
    cache.layers = [_growing(layer) for layer in cache.layers]
    return cast("DynamicCache", cache)


def _growing(layer: Any) -> CacheLayerMixin:
    if type(layer) is DynamicSlidingWindowLayer:
        return _GrowingWindow(layer.sliding_window)
    return _Growing()  # type: ignore[no-untyped-call]


class _Buffer:
    """One tensor ``[rows, heads, length, d]`` that tokens are appended to."""

    def __init__(self, first: Tensor) -> None:
        self.store, self.length = first, first.shape[2]

    def append(self, new: Tensor, kept: int) -> Tensor:
        """All of it with the new tokens at its end; of what was there the last ``kept`` tokens must stay."""
        count = new.shape[2]
        if self.length + count > self.store.shape[2]:
            self._move(self.store[:, :, self.length - kept : self.length], None, count + _ROOM)
        self.store[:, :, self.length : self.length + count] = new
        self.length += count
        return self.store[:, :, : self.length]

    def take(self, rows: Tensor, kept: int) -> Tensor:
        """Its last ``kept`` tokens for some rows, any row any number of times."""
        self._move(self.store[:, :, self.length - kept : self.length], rows, _ROOM)
        return self.store[:, :, : self.length]

    def join(self, other: _Buffer, rows: Tensor, kept: int) -> Tensor:
        """Its last ``kept`` tokens with those of some rows of another buffer below them; zeros where it has fewer."""
        parts = (self.store[:, :, : self.length], other.store[rows, :, : other.length])
        count, heads, size = sum(len(part) for part in parts), parts[0].shape[1], parts[0].shape[3]
        store = parts[0].new_empty((count, heads, kept + _ROOM, size))
        for target, part in ((store[: len(parts[0])], parts[0]), (store[len(parts[0]) :], parts[1])):
            pad = max(0, kept - part.shape[2])
            target[:, :, :pad] = 0  # what is masked is still multiplied by 0
            target[:, :, pad:kept] = _last(part, kept - pad)
        self.store, self.length = store, kept
        return store[:, :, :kept]

    def _move(self, tokens: Tensor, rows: Tensor | None, room: int) -> None:
        count, heads, length, size = tokens.shape
        count = count if rows is None else len(rows)
        store = tokens.new_empty((count, heads, length + room, size))
        store[:, :, :length] = tokens if rows is None else tokens[rows]
        self.store, self.length = store, length


class _Appending(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Buffers of both kinds of layers. ``keys`` and ``values`` are views of what must be kept."""

    buffers: tuple[_Buffer, _Buffer]

    def _append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.buffers = (_Buffer(keys), _Buffer(values))
            return keys, values
        kept = self.keys.shape[2]
        return self.buffers[0].append(keys, kept), self.buffers[1].append(values, kept)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, any of them any number of times."""
        if self.keys is not None:
            kept = self.keys.shape[2]
            self.keys, self.values = (buffer.take(indices, kept) for buffer in self.buffers)

    def shorten(self, tokens: int) -> None:
        """Forget all but the last columns, before rows are selected."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = _last(self.keys, tokens), _last(self.values, tokens)

    def join(self, other: _Appending, rows: Tensor, tokens: int) -> None:
        """Append rows of another cache of the same layer, both aligned on the right and so many tokens long."""
        pairs = zip(self.buffers, other.buffers, strict=True)
        self.keys, self.values = (buffer.join(new, rows, tokens) for buffer, new in pairs)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row several times."""
        if self.keys is not None:
            rows = torch.arange(self.keys.shape[0], device=self.keys.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))


class _Growing(_Appending, DynamicLayer):  # type: ignore[no-untyped-call]
    """Attention to everything so far."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens; all keys and values."""
        self.keys, self.values = self._append(key_states, value_states)
        return self.keys, self.values


class _GrowingWindow(_Appending, DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]
    """Attention to the last few tokens: the buffer is cut to them when it is moved."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens; the keys and values that the new ones may attend to."""
        keys, values = self._append(key_states, value_states)
        self.cumulative_length += key_states.shape[2]
        seen, kept = self.sliding_window - 1 + key_states.shape[2], self.sliding_window - 1
        self.keys, self.values = _last(keys, kept), _last(values, kept)
        return _last(keys, seen), _last(values, seen)

    def shorten(self, tokens: int) -> None:
        """Forget all but the last columns, before rows are selected."""
        super().shorten(tokens)
        self.cumulative_length = min(self.cumulative_length, tokens)

    def join(self, other: _Appending, rows: Tensor, tokens: int) -> None:
        """Append rows of another cache of the same layer, both aligned on the right and so many tokens long."""
        super().join(other, rows, min(tokens, self.sliding_window - 1))
        self.cumulative_length = tokens


def _last(x: Tensor, tokens: int) -> Tensor:
    return x[:, :, max(0, x.shape[2] - tokens) :]
