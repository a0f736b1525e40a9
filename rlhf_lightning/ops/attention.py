r"""Attention of a packed row in which the responses of a group share their prompt.

A prompt token attends to the earlier tokens of its prompt; a response token to its whole prompt and to the earlier
tokens of its own response. From the start of its prompt, a token at position :math:`i` sees :math:`j \le i`, and
with a sliding window :math:`w` only :math:`j > i - w`.

The computation goes block by block of query rows, so memory grows with the row's length and not with its square. The
backward pass computes each block's probabilities again, like flash attention. Scores and softmax are at least float32
whatever the dtype of the queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_lightning.ops.flash import Plan, flash_attention
from rlhf_lightning.ops.precision import exact_products

#: Query rows computed at once. Their scores are ``heads * ROWS * keys`` float32 numbers.
ROWS = 256


@dataclass(frozen=True)
class Segments:
    """Spans of prompts and responses in a packed row, as plain integers (``[start, end)``)."""

    prompts: tuple[tuple[int, int], ...]
    responses: tuple[tuple[int, int, int], ...]  #: start, end, index of the prompt
    _blocks: dict[tuple[int | None, int | None], list[Block]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

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

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt with a response: a window of as many hides nothing."""
        prompt = [end - start for start, end in self.prompts]
        return max([*prompt, *(prompt[parent] + end - start for start, end, parent in self.responses)], default=0)

    @cached_property
    def plan(self) -> Plan:
        """Division of the row for the fused kernel."""
        return Plan.build(self.prompts, self.responses)

    def blocks(self, window: int | None = None, rows: int | None = ROWS) -> list[Block]:
        """Blocks of query rows that cover every token once; ``rows=None``: one block a prompt or response.

        The layers of a model ask for the same blocks, so they are cached.
        """
        if (window, rows) not in self._blocks:
            blocks = [block for start, end in self.prompts for block in _split(0, 0, start, end, window, rows)]
            for start, end, parent in self.responses:
                blocks += _split(*self.prompts[parent], start, end, window, rows)
            self._blocks[window, rows] = blocks
        return self._blocks[window, rows]


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
        """Mask of the keys that each query row sees."""
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
    rows: int | None = None,
) -> Float[Tensor, "tokens heads e"]:
    """Attention output of every token of a packed row.

    Args:
        query: all heads' queries; query head ``h`` reads key-value head ``h // (heads // kv_heads)``.
        key: keys.
        value: values.
        segments: the row's layout; together its spans cover every token.
        scale: multiplies the scores, > 0.
        window: sliding window in tokens, the token itself included; None: no limit.
        softcap: ``c`` of ``c * tanh(score / c)`` (Gemma-2); None: no cap.
        rows: query rows computed at once, block by block; None: torch's fused kernel where it applies, else ``ROWS``.
    """
    if window is not None and window >= segments.longest:
        window = None
    fused = window is None and softcap is None and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    if fused and rows is None:
        return flash_attention(query, key, value, segments.plan, scale)
    rows = rows or ROWS
    options = _Options(scale, softcap, segments.blocks(window, rows), min(rows, query.shape[1]))
    return _SharedPrefixAttention.apply(query, key, value, options)  # type: ignore[no-any-return,no-untyped-call]


@dataclass(frozen=True)
class _Options:
    scale: float
    softcap: float | None
    blocks: list[Block]
    rows: int

    @property
    def power(self) -> float:
        """The power of two in the scale: queries times it are still bfloat16 numbers."""
        return float(2.0 ** math.floor(math.log2(self.scale)))

    @property
    def rest(self) -> float:
        """Remaining factor of the scale; 1 for the usual head sizes of 16, 64 and 256."""
        return self.scale / self.power


class _SharedPrefixAttention(torch.autograd.Function):
    """Forward and backward over the blocks; nothing but the inputs is kept between them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, options: _Options) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options = options
        group = len(query) // len(key)
        output = value.new_empty(len(key), query.shape[1] * group, value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):
            rows = _Rows(query, key, options)
            for block in options.blocks:
                probs, _ = rows.probabilities(block)
                output[:, block.start * group : block.stop * group] = probs.to(value.dtype) @ block.take(value)
        return _by_token(output, group).flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        options, group = ctx.options, len(query) // len(key)
        with torch.autocast(query.device.type, enabled=False):
            rows = _Rows(query, key, options)
            upstream = _by_head(grad.transpose(0, 1), group).contiguous().flatten(1, 2)
            queries = rows.query.to(query.dtype)
            grad_query = torch.empty_like(queries)
            grad_key, grad_value = (torch.zeros(x.shape, dtype=rows.query.dtype, device=x.device) for x in (key, value))
            for block in options.blocks:
                span = slice(block.start * group, block.stop * group)
                probs, slope = rows.probabilities(block)
                block.add(grad_value, probs.to(value.dtype).mT @ upstream[:, span])
                grad_probs = (upstream[:, span] @ block.take(value).mT).to(probs.dtype)
                scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
                scores = (scores if slope is None else scores * slope).to(query.dtype)
                block.add(grad_key, scores.mT @ queries[:, span])
                grad_query[:, span] = scores @ block.take(key)
            grad_query = _by_token(grad_query, group).mul_(options.scale).flatten(1, 2).transpose(0, 1)
        return grad_query, grad_key.mul_(options.rest).to(key.dtype), grad_value.to(value.dtype), None


class _Rows:
    """Inputs of the blocks of one row: scaled queries and keys as float32, and the triangle that hides the future.

    The query heads that share keys are interleaved, ``[kv_heads, tokens * group, d]``, so a block of tokens is a view
    and one product serves the whole group.
    """

    def __init__(self, query: Tensor, key: Tensor, options: _Options) -> None:
        wide = torch.promote_types(query.dtype, torch.float32)
        grouped = _by_head(query, len(query) // len(key))
        self.dtype = query.dtype
        self.query = torch.empty(grouped.shape, dtype=wide, device=query.device)
        self.query = torch.mul(grouped, options.power, out=self.query).flatten(1, 2)
        self.key = key.to(wide)
        self.rest, self.softcap = options.rest, options.softcap
        size = (options.rows, options.rows)
        self.future = torch.full(size, -torch.inf, dtype=wide, device=query.device).triu_(1)[:, None]

    def probabilities(self, block: Block) -> tuple[Tensor, Tensor | None]:
        """A block's attention probabilities ``[kv_heads, rows * group, keys]``, and the soft-cap's slope."""
        count = block.stop - block.start
        group = self.query.shape[1] // self.key.shape[1]
        with exact_products(self.dtype):
            scores = self.query[:, block.start * group : block.stop * group] @ block.take(self.key).mT
        if self.rest != 1:
            scores *= self.rest
        slope = None
        if self.softcap is not None:
            capped = torch.tanh(scores / self.softcap)
            scores, slope = capped * self.softcap, 1 - capped.square()
        by_row = scores.view(len(scores), count, group, -1)
        if block.window is None:  # only the rows' own keys can lie in the future
            by_row[..., -count:] += self.future[:count, :, :count]
        else:
            by_row.masked_fill_(~block.visible(scores.device)[:, None], -torch.inf)
        return scores.softmax(-1), slope


def _by_head(x: Tensor, group: int) -> Tensor:
    """``[heads, tokens, d]`` -> ``[kv_heads, tokens, group, d]``."""
    return x.view(-1, group, *x.shape[1:]).transpose(1, 2)


def _by_token(x: Tensor, group: int) -> Tensor:
    """``[kv_heads, tokens * group, d]`` -> ``[tokens, kv_heads, group, d]``."""
    return x.view(len(x), -1, group, x.shape[-1]).transpose(0, 1)
