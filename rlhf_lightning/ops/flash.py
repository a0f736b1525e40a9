r"""Shared-prefix attention out of torch's fused kernel for CPUs, which keeps no scores.

A row consists of causal spans, each token of which sees itself and what lies before it in its span: a prompt, with its
response if that is the only one and lies behind it, and every other response. Three responses of a prompt or more
attend to it in one more call, whatever their number and lengths, so the prompt's keys and values are read where they
lie. The two of a pair do so in a call each: equal responses have equal numbers to the bit, and are a tie. The two parts
of such a token are joined by their log-sum-exps :math:`l_1, l_2`: with :math:`l = \log(e^{l_1} + e^{l_2})`
the output is :math:`e^{l_1 - l} o_1 + e^{l_2 - l} o_2`. The backward pass of a part needs only the joined output and
:math:`l`, because its probabilities are :math:`e^{s - l}`.

Short spans are computed together, padded to a common length at their ends, where no token sees the padding.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Causal spans of up to so many tokens are computed together.
SHORT = 16

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Span:
    """Tokens ``[start, stop)`` that see the keys ``[first, last)``: all of them, or causally where they are their own.

    The query heads that share a key head are heads of the kernel that read the same keys: a stride of 0, no copy.
    """

    start: int
    stop: int
    first: int
    last: int

    @property
    def causal(self) -> bool:
        """Return whether the keys are those of the tokens themselves."""
        return self.start == self.first

    def queries(self, x: Tensor, group: int) -> Tensor:
        """``[tokens, heads, d]`` -> ``[kv_heads, group, span, d]``, a view."""
        return torch.unflatten(x[self.start : self.stop], 1, (-1, group)).permute(1, 2, 0, 3)

    def keys(self, x: Tensor, group: int) -> Tensor:
        """``[tokens, kv_heads, d]`` -> ``[kv_heads, group, keys, d]``, a view."""
        return x[self.first : self.last, :, None].expand(-1, -1, group, -1).permute(1, 2, 0, 3)

    def upstream(self, grad: Tensor, group: int) -> Tensor:
        """Gradients of the outputs, in the layout of the queries."""
        return self.queries(grad, group)

    def write(self, output: Tensor, total: Tensor, part: Tensor, log_sum: Tensor) -> None:
        """Put a call's result where it belongs; keys that are not the tokens' own join what is there."""
        rows, sums = output[self.start : self.stop], total[self.start : self.stop]
        part, log_sum = part.permute(2, 0, 1, 3).flatten(1, 2), log_sum.permute(2, 0, 1).flatten(1)
        if self.causal:
            rows.copy_(part)
            sums.copy_(log_sum)
        else:
            share = (log_sum - sums).sigmoid_()[..., None]  # of the joined sum of exponentials
            rows.copy_(torch.lerp(rows.to(share.dtype), part.to(share.dtype), share))
            sums.copy_(torch.logaddexp(sums, log_sum))

    def add(self, totals: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Add a call's gradients of queries, keys and values to the row's."""
        queries, keys, values = gradients
        totals[0][self.start : self.stop] += queries.permute(2, 0, 1, 3).flatten(1, 2)
        totals[1][self.first : self.last] += keys.sum(1).transpose(0, 1)
        totals[2][self.first : self.last] += values.sum(1).transpose(0, 1)


@dataclass(frozen=True)
class Short:
    """Short causal spans, padded to one length; each is a row of the kernel's batch."""

    slots: Int[Tensor, " slots"]  #: the token in each slot; padding repeats the last token of its span
    filled: Int[Tensor, " filled"]  #: the slots that are no padding
    length: int

    causal = True

    @classmethod
    def build(cls, spans: Sequence[tuple[int, int]], length: int) -> Short:
        """From spans of at most ``length`` tokens."""
        start, stop = torch.tensor(spans).unbind(1)
        slots = start[:, None] + torch.arange(length)
        last = stop[:, None] - 1
        return cls(slots.minimum(last).flatten(), (slots <= last).flatten().nonzero().flatten(), length)

    def queries(self, x: Tensor, group: int) -> Tensor:
        """``[tokens, heads, d]`` -> ``[spans, heads, length, d]``."""
        return torch.unflatten(x[self.slots], 0, (-1, self.length)).transpose(1, 2)

    def keys(self, x: Tensor, group: int) -> Tensor:
        """``[tokens, kv_heads, d]`` -> ``[spans, heads, length, d]``."""
        taken = x[self.slots].repeat_interleave(group, 1)
        return torch.unflatten(taken, 0, (-1, self.length)).transpose(1, 2)

    def upstream(self, grad: Tensor, group: int) -> Tensor:
        """Gradients of the outputs, in the layout of the queries; 0 for padding."""
        slots = grad.new_zeros(len(self.slots), *grad.shape[1:])
        slots[self.filled] = grad[self.slots[self.filled]]
        return torch.unflatten(slots, 0, (-1, self.length)).transpose(1, 2)

    def write(self, output: Tensor, total: Tensor, part: Tensor, log_sum: Tensor) -> None:
        """Put a call's result where it belongs."""
        tokens = self.slots[self.filled]
        output[tokens] = self._tokens(part)
        total[tokens] = self._tokens(log_sum)

    def add(self, totals: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Add a call's gradients of queries, keys and values to the row's."""
        tokens = self.slots[self.filled]
        for total, gradient in zip(totals, gradients, strict=True):
            by_head = torch.unflatten(self._tokens(gradient), 1, (total.shape[1], -1))
            total[tokens] += by_head.sum(2)

    def _tokens(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)[self.filled]


@dataclass(frozen=True)
class Plan:
    """Division of a row. The causal parts come first and cover each token once."""

    parts: tuple[Span | Short, ...]

    @classmethod
    def build(cls, prompts: Sequence[tuple[int, int]], responses: Iterable[tuple[int, int, int]]) -> Plan:
        """From the spans of prompts and responses (with the index of their prompt)."""
        causal = {start: stop for start, stop in prompts if start < stop}
        seeing: list[Span] = []
        present = [each for each in responses if each[0] < each[1]]
        count = Counter(parent for _, _, parent in present)
        for start, stop, parent in present:
            first, last = prompts[parent]
            if first < last == start and count[parent] == 1:
                causal[first] = stop  # behind its prompt: one causal span
                continue
            causal[start] = stop
            if count[parent] > 2 and seeing and seeing[-1].stop == start and seeing[-1].first == first:
                start = seeing.pop().start
            seeing += [Span(start, stop, first, last)] if first < last else []
        short: dict[int, list[tuple[int, int]]] = defaultdict(list)
        parts: list[Span | Short] = []
        for start, stop in causal.items():
            if stop - start > SHORT:
                parts.append(Span(start, stop, start, stop))
            else:
                short[1 << (stop - start - 1).bit_length()].append((start, stop))
        parts += [Short.build(spans, length) for length, spans in short.items()]
        return cls((*parts, *seeing))


def flash_attention(
    query: Float[Tensor, "heads tokens d"],
    key: Float[Tensor, "kv_heads tokens d"],
    value: Float[Tensor, "kv_heads tokens d"],
    plan: Plan,
    scale: float,
) -> Float[Tensor, "tokens heads d"]:
    """Attention output of every token of a packed row, without window or soft-cap."""
    return _Flash.apply(query, key, value, plan, scale)  # type: ignore[no-any-return,no-untyped-call]


class _Flash(torch.autograd.Function):
    """Keeps the inputs, the output and the log-sum-exps.

    The backward pass runs in float32 at least: the kernel's bfloat16 backward pass takes longer and rounds more.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
        group = len(query) // len(key)
        rows = [x.transpose(0, 1) for x in (query, key, value)]
        output = torch.empty(rows[0].shape, dtype=value.dtype)
        total = torch.empty(output.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
        for part in plan.parts:
            inputs = part.queries(rows[0], group), part.keys(rows[1], group), part.keys(rows[2], group)
            part.write(output, total, *_forward(*inputs, 0.0, part.causal, scale=scale))
        ctx.save_for_backward(query, key, value, output, total)
        ctx.plan, ctx.scale = plan, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, total = ctx.saved_tensors
        group = len(query) // len(key)
        rows = [x.transpose(0, 1).to(total.dtype) for x in (query, key, value)]
        grad, output = grad.to(total.dtype), output.to(total.dtype)
        sums = [torch.zeros_like(x) for x in rows]
        for part in ctx.plan.parts:
            inputs = part.queries(rows[0], group), part.keys(rows[1], group), part.keys(rows[2], group)
            result = part.queries(output, group), part.queries(total[..., None], group)[..., 0]
            upstream = part.upstream(grad, group)
            part.add(sums, _backward(upstream, *inputs, *result, 0.0, part.causal, scale=ctx.scale))
        grads = [x.to(query.dtype).transpose(0, 1) for x in sums]
        return grads[0], grads[1], grads[2], None, None
