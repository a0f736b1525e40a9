r"""Divergences between two models' distributions over the whole vocabulary, without a ``[tokens, vocabulary]`` matrix.

With teacher :math:`p`, student :math:`q`, their logits :math:`s` and :math:`z` and a mixture
:math:`m = \beta p + (1 - \beta) q`, at one token:

.. math::
    \text{forward\_kl} = \mathrm{KL}(p \| q), \qquad \text{reverse\_kl} = \mathrm{KL}(q \| p), \qquad
    \text{jsd} = \beta\,\mathrm{KL}(p \| m) + (1 - \beta)\,\mathrm{KL}(q \| m)

The generalised Jensen-Shannon divergence is that of GKD (arXiv:2306.13649, eq. 1). The vocabulary is walked in blocks,
as in :mod:`rlhf_lightning.ops.log_probs`: one block's logits of both models exist at a time, forward and backward. A
KL takes one walk forward, a JSD two (its mixture needs both normalisers), the gradient one more. Gradients reach the
student only; they are, with respect to its logits,

.. math::
    \nabla_z = q - p, \qquad q\,(\log q - \log p - \mathrm{KL}), \qquad q\,(g - \textstyle\sum_u q_u g_u),\quad
    g = (1 - \beta) \log(q / m)

Statistics are float32 (float64 for double inputs) whatever the models' dtype, in and outside autocast. In nats. A token
that a distribution never gives (a masked logit, -inf) adds nothing to what is averaged over that distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.ops.log_probs import (
    BLOCK_BYTES,
    DEFAULT_BLOCK_BYTES,
    NEVER,
    HeadOptions,
    LogitGradient,
    LogitTransform,
    head_gradients,
    shifted,
)

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
#: Tokens whose logits exist at once where a head can only be called whole.
ROWS = 512


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model at n tokens, as the hidden states and the head that its logits would be made from."""

    hidden: Float[Tensor, "n d"]
    weight: Float[Tensor, "v d"] | None = None  #: of a plain head; None: ``head`` is called
    bias: Float[Tensor, " v"] | None = None
    transform: LogitTransform = field(default_factory=LogitTransform)
    head: nn.Module | None = None  #: a head that is more than a weight and a bias

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.head is None):
            raise ValueError("predictions need either the weight of a plain head or a head to call")

    def detached(self) -> Predictions:
        """The same without gradients: a teacher's."""
        weight = None if self.weight is None else self.weight.detach()
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=weight, bias=bias)

    def at_temperature(self, temperature: float) -> Predictions:
        """The same with all logits divided by ``temperature`` (on top of what already divides them)."""
        divided = replace(self.transform, temperature=self.transform.temperature * temperature)
        return replace(self, transform=divided)

    def logits(self, rows: slice) -> Tensor:
        """Logits of some tokens over the whole vocabulary, in at least float32."""
        states = self.hidden[rows]
        if self.head is not None:
            raw = self.head(states)
        else:
            assert self.weight is not None
            raw = nn.functional.linear(states, self.weight, self.bias)
        return self.transform(raw.to(torch.promote_types(raw.dtype, torch.float32)))


def divergence(
    student: Predictions,
    teacher: Predictions,
    kind: Divergence = "forward_kl",
    *,
    mixture: float = 0.5,
    block_bytes: int | None = None,
) -> Float[Tensor, " n"]:
    """Divergence of the student from the teacher at each token, in nats; gradients reach the student only.

    Where the two heads have different numbers of rows (a vocabulary padded to another multiple), the distributions are
    over the tokens that both know.

    Args:
        student: predictions of the model that is trained.
        teacher: predictions of the other one at the same tokens.
        kind: ``forward_kl`` is KL(teacher || student), ``reverse_kl`` KL(student || teacher), ``jsd`` the generalised
            Jensen-Shannon divergence.
        mixture: the teacher's weight beta in the mixture of ``jsd``, in (0, 1); 0.5 is the symmetric one.
        block_bytes: memory for the float32 logits of one block, both models together; None: 4 MiB on a CPU, 256 MiB
            elsewhere.

    Raises:
        ValueError: ``mixture`` is out of range.
    """
    if not 0 < mixture < 1:
        raise ValueError(f"mixture={mixture} must lie in (0, 1); the limits are forward_kl and reverse_kl")
    teacher = teacher.detached()
    if student.weight is None or teacher.weight is None:
        return _by_rows(student, teacher, kind, mixture)
    shared = min(len(student.weight), len(teacher.weight))
    student, teacher = _first_rows(student, shared), _first_rows(teacher, shared)
    block_bytes = block_bytes or BLOCK_BYTES.get(student.hidden.device.type, DEFAULT_BLOCK_BYTES)
    call = _Call(
        kind,
        mixture,
        _options(student, block_bytes // 2),
        _options(teacher, block_bytes // 2),
    )
    value: Tensor = _Blockwise.apply(  # type: ignore[no-untyped-call]
        student.hidden, student.weight, student.bias, teacher.hidden, teacher.weight, teacher.bias, call
    )
    return value


def _options(predictions: Predictions, block_bytes: int) -> HeadOptions:
    assert predictions.weight is not None
    return HeadOptions.of(predictions.hidden, predictions.weight, predictions.transform, block_bytes=block_bytes)


def _first_rows(predictions: Predictions, count: int) -> Predictions:
    assert predictions.weight is not None
    if len(predictions.weight) == count:
        return predictions
    bias = None if predictions.bias is None else predictions.bias[:count]
    return replace(predictions, weight=predictions.weight[:count], bias=bias)


def _by_rows(student: Predictions, teacher: Predictions, kind: Divergence, mixture: float) -> Tensor:
    """Through heads that can only be called whole: some tokens at a time, each part checkpointed."""

    def part(rows: slice) -> Tensor:
        z, s = student.logits(rows), teacher.logits(rows)
        shared = min(z.shape[-1], s.shape[-1])
        return dense_divergence(z[:, :shared], s[:, :shared], kind, mixture=mixture)

    starts = range(0, max(len(student.hidden), 1), ROWS)
    slices = [slice(start, start + ROWS) for start in starts]
    if not torch.is_grad_enabled():
        return torch.cat([part(rows) for rows in slices])
    return torch.cat([checkpoint(part, rows, use_reentrant=False) for rows in slices])


def dense_divergence(
    student: Float[Tensor, "n v"], teacher: Float[Tensor, "n v"], kind: Divergence, *, mixture: float = 0.5
) -> Float[Tensor, " n"]:
    """The same numbers from the complete logits."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    if kind == "forward_kl":
        return expected(log_p.exp(), log_p - log_q)
    if kind == "reverse_kl":
        return expected(log_q.exp(), log_q - log_p)
    log_q, log_p = log_q.clamp(min=NEVER), log_p.clamp(min=NEVER)
    log_m = _log_mixture(log_p, log_q, mixture)
    return mixture * (log_p.exp() * (log_p - log_m)).sum(-1) + (1 - mixture) * (log_q.exp() * (log_q - log_m)).sum(-1)


def expected(share: Float[Tensor, "n v"], values: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
    """Sum of values weighed by probabilities; where the probability is 0, the value may be infinite or nan."""
    return (share * values.masked_fill(share == 0, 0.0)).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, mixture: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(mixture), log_q + math.log1p(-mixture))


@dataclass(frozen=True)
class _Side:
    """One model's head in an autograd function, where tensors come and go one by one."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    options: HeadOptions

    def logits(self, block: slice) -> Tensor:
        """The block's logits, in at least float32."""
        dtype = self.options.dtype
        bias = None if self.bias is None else self.bias[block]
        return self.options.logits(self.hidden.to(dtype), self.weight[block].to(dtype), bias)


@dataclass(frozen=True)
class _Call:
    kind: Divergence
    mixture: float
    student: HeadOptions
    teacher: HeadOptions

    def blocks(self, side: _Side) -> list[slice]:
        return list(self.student.blocks(len(side.hidden), len(side.weight)))


class _Blockwise(torch.autograd.Function):
    """Forward and hand-written backward over blocks of the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        call: _Call,
    ) -> Tensor:
        ctx.call = call
        student = _Side(hidden, weight, bias, call.student)
        teacher = _Side(teacher_hidden, teacher_weight, teacher_bias, call.teacher)
        with torch.autocast(hidden.device.type, enabled=False):
            value, normalizer, teacher_normalizer, center = _VALUES[call.kind](student, teacher, call)
        ctx.save_for_backward(
            hidden,
            weight,
            bias,
            teacher_hidden,
            teacher_weight,
            teacher_bias,
            normalizer,
            teacher_normalizer,
            center,
        )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, states, rows, offset, normalizer, teacher_normalizer, center = ctx.saved_tensors
        teacher = _Side(states, rows, offset, ctx.call.teacher)
        slope = _Slope(ctx.call, teacher, normalizer, teacher_normalizer, center, grad)
        with torch.autocast(hidden.device.type, enabled=False):
            grads = head_gradients(hidden, weight, bias, slope, ctx.call.student, ctx.needs_input_grad[:3])
        return (*grads, None, None, None, None)


#: Divergence, both log-normalizers (student's first) and what the gradient subtracts from each row.
_Value = tuple[Tensor, Tensor, Tensor, Tensor]


def _forward_kl(student: _Side, teacher: _Side, call: _Call) -> _Value:
    value, teacher_normalizer, normalizer = _kl(teacher, student, call)
    return value, normalizer, teacher_normalizer, torch.zeros_like(value)


def _reverse_kl(student: _Side, teacher: _Side, call: _Call) -> _Value:
    value, normalizer, teacher_normalizer = _kl(student, teacher, call)
    return value, normalizer, teacher_normalizer, value


def _kl(first: _Side, second: _Side, call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    """KL(first || second) and both log-normalizers, in one walk: each block's part is relative to the block's own."""
    gaps, firsts, seconds = [], [], []
    for block in call.blocks(first):
        a, b = first.logits(block), second.logits(block)
        difference = a - b
        largest, weights = shifted(a)
        total = weights.exp_().sum(-1)
        gaps.append(expected(weights, difference) / total)  # nan where the whole block is masked: its share is 0
        firsts.append(largest + total.log())
        seconds.append(b.logsumexp(-1))
    blocks = torch.stack(firsts, 1)
    normalizer, other = blocks.logsumexp(1), torch.stack(seconds).logsumexp(0)
    gap = expected((blocks - normalizer[:, None]).exp(), torch.stack(gaps, 1))
    return gap - (normalizer - other), normalizer, other


def _jsd(student: _Side, teacher: _Side, call: _Call) -> _Value:
    blocks = call.blocks(student)
    normalizer = torch.stack([student.logits(block).logsumexp(-1) for block in blocks]).logsumexp(0)
    teacher_normalizer = torch.stack([teacher.logits(block).logsumexp(-1) for block in blocks]).logsumexp(0)
    of_teacher, of_student = torch.zeros_like(normalizer), torch.zeros_like(normalizer)
    for block in blocks:
        log_q = (student.logits(block) - normalizer[:, None]).clamp_(min=NEVER)
        log_p = (teacher.logits(block) - teacher_normalizer[:, None]).clamp_(min=NEVER)
        log_m = _log_mixture(log_p, log_q, call.mixture)
        of_teacher += (log_p.exp() * (log_p - log_m)).sum(-1)
        of_student += (log_q.exp() * (log_q - log_m)).sum(-1)
    center = (1 - call.mixture) * of_student
    return call.mixture * of_teacher + center, normalizer, teacher_normalizer, center


_VALUES: dict[str, Callable[[_Side, _Side, _Call], _Value]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
}


@dataclass(frozen=True)
class _Slope(LogitGradient):
    """Gradient with respect to a block's raw student logits; the equations stand at the top of the module."""

    call: _Call
    teacher: _Side
    normalizer: Tensor
    teacher_normalizer: Tensor
    center: Tensor
    grad: Tensor

    @property
    def row(self) -> Tensor:
        return self.grad * self.call.student.transform.factor

    def matrix(self, logits: Tensor, block: slice) -> Tensor:
        """The block's part of the gradient, without the row's factor."""
        log_q = logits - self.normalizer[:, None]
        log_p = self.teacher.logits(block) - self.teacher_normalizer[:, None]
        if self.call.kind == "forward_kl":
            result = log_q.exp() - log_p.exp()
        else:
            jsd = self.call.kind == "jsd"
            other = _log_mixture(log_p, log_q, self.call.mixture) if jsd else log_p
            weight = 1 - self.call.mixture if jsd else 1.0
            share = log_q.exp()
            result = share * (weight * (log_q - other) - self.center[:, None]).masked_fill_(share == 0, 0.0)
        slope = self.call.student.transform.slope(logits)
        return result if slope is None else result * slope
