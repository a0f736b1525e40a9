r"""Attention of a packed row in which the responses of a group share their prompt.

A prompt token attends to the earlier tokens of its prompt; a response token to its whole prompt and to the earlier
tokens of its own response. From the start of its prompt, a token at position :math:`i` sees :math:`j \le i`, and
with a sliding window :math:`w` only :math:`j > i - w`.

The computation goes block by block of query rows, so memory grows with the row's length and not with its square. The
backward pass computes each block's probabilities again, like flash attention. Scores and softmax are at least float32
whatever the dtype of the queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_lightning.ops.precision import exact_products

#: Query rows computed at once. Their scores are ``heads * ROWS * keys`` float32 numbers.
ROWS = 256


@dataclass(frozen=True)
class Segments:
    """Where prompts and responses lie in a packed row, as plain integers (``[start, end)``)."""

    prompts: tuple[tuple[int, int], ...]
    responses: tuple[tuple[int, int, int], ...]  #: start, end, index of the prompt

    @classmethod
    def build(
        cls,
        prompt_span: Int[Tensor, "prompts 2"],
        response_span: Int[Tensor, "responses 2"],
        parent: Int[Tensor, " responses"],
    ) -> Segments:
        """From a packed batch's spans (one transfer from the device)."""
        flat = torch.cat([prompt_span.flatten(), response_span.flatten(), parent]).tolist()
        prompts, responses = 2 * len(prompt_span), 2 * len(response_span)
        spans = flat[prompts : prompts + responses]
        return cls(
            tuple(zip(flat[0:prompts:2], flat[1:prompts:2], strict=True)),
            tuple(zip(spans[0::2], spans[1::2], flat[prompts + responses :], strict=True)),
        )

    def blocks(self, window: int | None = None, rows: int | None = ROWS) -> Iterator[Block]:
        """Blocks of query rows that cover every token once; ``rows=None``: one block a prompt or response."""
        for start, end in self.prompts:
            yield from _split(0, 0, start, end, window, rows)
        for start, end, parent in self.responses:
            yield from _split(*self.prompts[parent], start, end, window, rows)


@dataclass(frozen=True)
class Block:
    """Query rows ``[start, stop)`` of a row and the spans of the keys that any of them sees, in order of position."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    window: int | None  #: None: no key is too far back for any of the rows

    @property
    def width(self) -> int:
        """Number of keys."""
        return sum(end - start for start, end in self.keys)

    def take(self, values: Tensor) -> Tensor:
        """The block's keys or values out of ``[..., tokens, d]``: a view where they lie side by side."""
        parts = [values[..., start:end, :] for start, end in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add ``[..., keys, d]`` back to where :meth:`take` took it from."""
        done = 0
        for start, end in self.keys:
            total[..., start:end, :] += part[..., done : done + end - start, :]
            done += end - start

    def visible(self, device: torch.device) -> Bool[Tensor, "rows keys"]:
        """Which key each query row sees."""
        key = torch.arange(self.width, device=device)
        query = key[-(self.stop - self.start) :, None]  # the rows are their own last keys
        seen = key <= query
        return seen if self.window is None else seen & (key > query - self.window)


def _split(prefix: int, prefix_end: int, start: int, end: int, window: int | None, rows: int | None) -> Iterator[Block]:
    length = prefix_end - prefix
    for first in range(start, end, rows or max(end - start, 1)):
        stop = min(first + rows, end) if rows else end
        position, count = length + first - start, length + stop - start
        oldest = 0 if window is None else max(0, position - window + 1)  # first key that the first row sees
        spans = ((prefix + oldest, prefix_end), (start + max(0, oldest - length), stop))
        keys = tuple(span for span in spans if span[0] < span[1])
        if len(keys) == 2 and keys[0][1] == keys[1][0]:
            keys = ((keys[0][0], keys[1][1]),)
        yield Block(first, stop, keys, window if window is not None and count - oldest > window else None)


def shared_prefix_attention(
    query: Float[Tensor, "heads tokens d"],
    key: Float[Tensor, "kv_heads tokens d"],
    value: Float[Tensor, "kv_heads tokens e"],
    segments: Segments,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    rows: int = ROWS,
) -> Float[Tensor, "tokens heads e"]:
    """Attention output of every token of a packed row.

    Args:
        query: all heads' queries; query head ``h`` reads key-value head ``h // (heads // kv_heads)``.
        key: keys.
        value: values.
        segments: the row's layout; together its spans cover every token.
        scale: multiplies the scores.
        window: sliding window in tokens, the token itself included; None: no limit.
        softcap: ``c`` of ``c * tanh(score / c)`` (Gemma-2); None: no cap.
        rows: query rows computed at once.
    """
    options = _Options(segments, scale, window, softcap, rows)
    return _SharedPrefixAttention.apply(query, key, value, options)  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True)
class _Options:
    segments: Segments
    scale: float
    window: int | None
    softcap: float | None
    rows: int

    @property
    def blocks(self) -> Iterator[Block]:
        return self.segments.blocks(self.window, self.rows)

    def probabilities(self, query: Tensor, key: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
        """Attention probabilities ``[kv_heads, heads / kv_heads, rows, keys]``, and the soft-cap's slope."""
        wide = torch.promote_types(query.dtype, torch.float32)
        with exact_products(query.dtype):
            scores = torch.matmul(query.to(wide) * self.scale, key.to(wide).transpose(-1, -2))
        slope = None
        if self.softcap is not None:
            capped = torch.tanh(scores / self.softcap)
            scores, slope = capped * self.softcap, 1 - capped.square()
        scores = _grouped(scores, block)
        if block.window is None:  # only the rows' own keys can lie in the future
            own = scores[..., -(block.stop - block.start) :]
            own += torch.full(own.shape[-2:], -torch.inf, dtype=own.dtype, device=own.device).triu(1)
        else:
            scores.masked_fill_(~block.visible(scores.device), -torch.inf)
        return scores.softmax(-1), slope


def _grouped(x: Tensor, block: Block) -> Tensor:
    """``[kv_heads, group * rows, n]`` -> ``[kv_heads, group, rows, n]``."""
    return x.view(len(x), -1, block.stop - block.start, x.shape[-1])


def _fold(x: Tensor, block: Block, kv_heads: int) -> Tensor:
    """Rows of ``[heads, tokens, d]`` as ``[kv_heads, group * rows, d]``: the heads that share keys in one product."""
    return x[:, block.start : block.stop].reshape(kv_heads, -1, x.shape[-1])


class _SharedPrefixAttention(torch.autograd.Function):
    """Forward and backward over the blocks; nothing but the inputs is kept between them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, options: _Options) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options = options
        heads, tokens, kv_heads = len(query), query.shape[1], len(key)
        output = query.new_empty(tokens, heads, value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            for block in options.blocks:
                probs, _ = options.probabilities(_fold(query, block, kv_heads), block.take(key), block)
                result = probs.to(value.dtype).flatten(1, 2) @ block.take(value)
                output[block.start : block.stop] = _grouped(result, block).flatten(0, 1).transpose(0, 1)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        options, kv_heads = ctx.options, len(key)
        grad = grad.transpose(0, 1)
        grad_query = torch.empty_like(query)
        wide = torch.promote_types(query.dtype, torch.float32)
        grad_key, grad_value = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (key, value))
        with torch.autocast(query.device.type, enabled=False):
            for block in options.blocks:
                rows, keys = _fold(query, block, kv_heads), block.take(key)
                probs, slope = options.probabilities(rows, keys, block)
                upstream = _fold(grad, block, kv_heads)
                grad_probs = upstream @ block.take(value).transpose(-1, -2)
                probs = probs.flatten(1, 2)
                block.add(grad_value, probs.to(value.dtype).transpose(-1, -2) @ upstream)
                grad_scores = torch.ops.aten._softmax_backward_data(grad_probs.to(probs.dtype), probs, -1, probs.dtype)
                if slope is not None:
                    grad_scores *= slope
                grad_scores = grad_scores.to(query.dtype)
                block.add(grad_key, grad_scores.transpose(-1, -2) @ (rows * options.scale))
                result = (grad_scores @ keys) * options.scale
                grad_query[:, block.start : block.stop] = result.view(len(query), -1, result.shape[-1])
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None
