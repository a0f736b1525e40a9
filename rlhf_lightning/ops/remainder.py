r"""A distribution as its k most likely tokens and one class for all the others.

So a teacher's predictions can be kept in k numbers a token, and the divergence from it needs the student's log-probs
of those k tokens only, in one blockwise pass over the vocabulary:

.. math:: \sum_{j \le k} p_j (\log p_j - \log q_j) + p_r (\log p_r - \log q_r),
          \qquad p_r = 1 - \sum_j p_j, \quad q_r = 1 - \sum_j q_j

Source: "A General Language Assistant as a Laboratory for Alignment", arXiv:2112.00861, context distillation. In nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.ops.divergence import ROWS, Predictions, expected
from rlhf_lightning.ops.log_probs import (
    HeadOptions,
    LogitGradient,
    head_gradients,
    log_probs,
    module_log_probs,
    within,
)
from rlhf_lightning.ops.top_k import module_top_logits, top_logits

#: Least probability of the remaining tokens together. Its logarithm is taken, and float32 resolves 1 - sum to 6e-8.
MIN_REMAINDER = 1e-8


@dataclass(frozen=True)
class TopK:
    """The most likely tokens at n positions and their log-probs, highest first."""

    log_prob: Float[Tensor, "n k"]
    token: Int[Tensor, "n k"]


@torch.no_grad()
def top_k(predictions: Predictions, k: int, *, block_bytes: int | None = None) -> TopK:
    """The k most likely tokens with their log-probs over the whole vocabulary (no gradients).

    Args:
        predictions: of any model.
        k: how many, >= 1; all of a smaller vocabulary.
        block_bytes: memory for one block of float32 logits; None: 4 MiB on a CPU, 256 MiB elsewhere.

    Raises:
        ValueError: ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"top_k={k} must be at least 1")
    hidden, weight, bias, transform = predictions.hidden, predictions.weight, predictions.bias, predictions.transform
    anything = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    if weight is None:
        assert predictions.head is not None
        top = module_top_logits(predictions.head, hidden, anything, width=k, transform=transform)
        first = module_log_probs(predictions.head, hidden, top.token[:, 0], transform=transform)
    else:
        top = top_logits(hidden, weight, anything, bias, width=k, transform=transform, block_bytes=block_bytes)
        first = log_probs(hidden, weight, top.token[:, 0], bias, transform=transform, block_bytes=block_bytes)
    return TopK(first.log_prob[:, None] + top.logit - top.logit[:, :1], top.token)


def log_probs_at(
    predictions: Predictions, token: Int[Tensor, "n k"], *, block_bytes: int | None = None
) -> Float[Tensor, "n k"]:
    """Log-probs of k different tokens at each of n positions, over the whole vocabulary; gradients reach the model.

    Args:
        predictions: of the model.
        token: ids; those of one position differ from each other.
        block_bytes: memory for one block of float32 logits; None: 4 MiB on a CPU, 256 MiB elsewhere.
    """
    weight = predictions.weight
    if weight is None:
        return _by_rows(predictions, token)
    options = HeadOptions.of(predictions.hidden, weight, predictions.transform, block_bytes=block_bytes)
    value: Tensor = _LogProbsAt.apply(  # type: ignore[no-untyped-call]
        predictions.hidden, weight, predictions.bias, token, options
    )
    return value


def _by_rows(predictions: Predictions, token: Tensor) -> Tensor:
    def part(start: int) -> Tensor:
        rows = slice(start, start + ROWS)
        return predictions.logits(rows).log_softmax(-1).gather(-1, token[rows])

    starts = range(0, max(len(token), 1), ROWS)
    if not torch.is_grad_enabled():
        return torch.cat([part(start) for start in starts])
    return torch.cat([checkpoint(part, start, use_reentrant=False) for start in starts])


def remainder_kl(
    teacher: Float[Tensor, "n k"], student: Float[Tensor, "n k"], *, least: float = MIN_REMAINDER
) -> Float[Tensor, " n"]:
    """KL(teacher || student) over k tokens and one class for the remaining ones, in nats.

    Args:
        teacher: log-probs of the teacher's k tokens; no gradients reach it.
        student: log-probs of the same tokens under the student.
        least: lower bound of both remainders; where it binds, the remainder has no gradient.
    """
    teacher = teacher.detach()
    log_p, log_q = _with_remainder(teacher, least), _with_remainder(student, least)
    return expected(log_p.exp(), log_p - log_q)


def _with_remainder(log_prob: Tensor, least: float) -> Tensor:
    """The k + 1 log-probs: those given, and that of everything else."""
    total = log_prob.exp().sum(-1, keepdim=True)
    # Where the bound binds log1p must not see it: its gradient there, infinite, would turn 0 * inf into nan. Compared
    # is the remainder, since 1 - least is 1 in float32.
    bound = 1 - total < least
    rest = torch.log1p(-total.masked_fill(bound, 0.5))
    return torch.cat([log_prob, rest.masked_fill(bound, torch.tensor(least).log().item())], dim=-1)


class _LogProbsAt(torch.autograd.Function):
    """Forward and hand-written backward over blocks of the vocabulary, for several targets a position."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, token: Tensor, options: HeadOptions
    ) -> Tensor:
        ctx.options = options
        dtype = options.dtype
        states, normalizers = hidden.to(dtype), []
        chosen = torch.zeros(token.shape, dtype=torch.promote_types(dtype, torch.float32), device=token.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for block in options.blocks(len(hidden), len(weight)):
                logits = options.logits(states, weight[block].to(dtype), None if bias is None else bias[block])
                inside, column = _columns(token, block)
                chosen = torch.where(inside, logits.gather(1, column), chosen)
                normalizers.append(logits.logsumexp(-1))
        normalizer = torch.stack(normalizers).logsumexp(0)
        ctx.save_for_backward(hidden, weight, bias, token, normalizer)
        return chosen - normalizer[:, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token, normalizer = ctx.saved_tensors
        slope = _Slope(token, normalizer, grad, ctx.options)
        with torch.autocast(hidden.device.type, enabled=False):
            grads = head_gradients(hidden, weight, bias, slope, ctx.options, ctx.needs_input_grad[:3])
        return (*grads, None, None)


def _columns(token: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Return whether each token lies in a block, and its column there (else any column), both ``[n, k]``."""
    inside, column = within(token.flatten(), block)
    return inside.view(token.shape), column.view(token.shape)


@dataclass(frozen=True)
class _Slope(LogitGradient):
    r"""Gradient with respect to a block's raw logits: :math:`\sum_j g_j [v = t_j] - q_v \sum_j g_j`."""

    token: Tensor
    normalizer: Tensor
    grad: Tensor
    options: HeadOptions

    @property
    def row(self) -> Tensor:
        return torch.full_like(self.normalizer, self.options.transform.factor)

    def matrix(self, logits: Tensor, block: slice) -> Tensor:
        """The block's part of the gradient, without the row's factor."""
        result = (logits - self.normalizer[:, None]).exp() * -self.grad.sum(-1, keepdim=True)
        inside, column = _columns(self.token, block)
        result.scatter_add_(1, column, self.grad * inside)
        slope = self.options.transform.slope(logits)
        return result if slope is None else result * slope
