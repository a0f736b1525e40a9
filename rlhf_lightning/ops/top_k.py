"""The most likely next tokens with their logits, without a ``[tokens, vocabulary]`` matrix.

Gradients flow through the logits that were picked and through nothing else: a logit depends on one row of the head, so
the backward pass touches ``width + 1`` rows a token and never walks the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.ops.log_probs import HeadOptions, LogitTransform, within


@dataclass
class TopLogits:
    """The ``width`` highest logits of each row, highest first, and the target's own logit.

    The differences of logits are those of log-probs: ``log p(token) = log p(target) + logit - target_logit``.
    """

    logit: Float[Tensor, "n width"]
    token: Int[Tensor, "n width"]
    target_logit: Float[Tensor, " n"]


def top_logits(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    target: Int[Tensor, " n"],
    bias: Float[Tensor, " v"] | None = None,
    *,
    width: int,
    transform: LogitTransform | None = None,
    block_bytes: int | None = None,
) -> TopLogits:
    """The highest logits of ``hidden @ weight.T + bias`` and the targets' own, block by block over the vocabulary.

    Gradients reach ``hidden``, ``weight`` and ``bias``, each skipped where it is not required. Under autocast the
    matrix products of the forward pass run in the autocast dtype.

    Args:
        hidden: states that predict the targets, one row a target.
        weight: the head's weight, tied to the embeddings or not.
        target: token ids, 0 .. v - 1.
        bias: the head's bias.
        width: how many logits of each row, >= 1; a smaller vocabulary is taken whole.
        transform: scale, soft-cap and temperature of the logits; None: as they are.
        block_bytes: memory for one block of float32 logits; None: as in ``log_probs``.

    Raises:
        ValueError: ``width`` is below 1.
    """
    check_width(width)
    options = HeadOptions.of(hidden, weight, transform, block_bytes=block_bytes)
    logit, token, target_logit = _TopLogits.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, target, width, options
    )
    return TopLogits(logit, token, target_logit)


def module_top_logits(
    head: nn.Module,
    hidden: Float[Tensor, "n d"],
    target: Int[Tensor, " n"],
    *,
    width: int,
    transform: LogitTransform | None = None,
    rows: int = 512,
) -> TopLogits:
    """The same through the head module itself, for a head that is more than a weight and a bias (LoRA on the head).

    The head is called on ``rows`` tokens at a time; each call is checkpointed, so only one chunk's logits exist at any
    moment.

    Raises:
        ValueError: ``width`` is below 1.
    """
    check_width(width)

    def chunk(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        top = logits_top(head(states), ids, width=width, transform=transform)
        return top.logit, top.token, top.target_logit

    remember = torch.is_grad_enabled()
    parts = [
        checkpoint(chunk, states, ids, use_reentrant=False) if remember else chunk(states, ids)
        for states, ids in zip(torch.split(hidden, rows), torch.split(target, rows), strict=True)
    ]
    return TopLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def logits_top(
    logits: Float[Tensor, "n v"], target: Int[Tensor, " n"], *, width: int, transform: LogitTransform | None = None
) -> TopLogits:
    """The same from logits that a model has computed.

    Raises:
        ValueError: ``width`` is below 1.
    """
    check_width(width)
    logits = (transform or LogitTransform())(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    logit, token = logits.topk(min(width, logits.shape[1]), dim=-1)
    return TopLogits(logit, token, logits.gather(1, target[:, None]).squeeze(1))


def check_width(width: int) -> None:
    """Raise ValueError when there is nothing to pick."""
    if width < 1:
        raise ValueError(f"the number of most likely tokens must be at least 1, got {width}")


class _TopLogits(torch.autograd.Function):
    """Forward over blocks of the vocabulary; backward over the picked rows of the head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        width: int,
        options: HeadOptions,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            logit, token, target_logit = _forward(hidden, weight, bias, target, width, options)
        ctx.set_materialize_grads(False)
        ctx.transform = options.transform
        ctx.save_for_backward(hidden, weight, bias, target, logit, token, target_logit)
        ctx.mark_non_differentiable(token)
        return logit, token, target_logit

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, _: Tensor | None, grad_target: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, logit, token, target_logit = ctx.saved_tensors
        grad = torch.zeros_like(logit) if grad is None else grad
        grad_target = torch.zeros_like(target_logit) if grad_target is None else grad_target
        token = torch.cat([token, target[:, None]], 1)
        slope = torch.cat([grad, grad_target[:, None]], 1) * ctx.transform.factor
        curve = ctx.transform.slope(torch.cat([logit, target_logit[:, None]], 1))
        slope = slope if curve is None else slope * curve
        with torch.autocast(hidden.device.type, enabled=False):
            return *_backward(hidden, weight, bias, token, slope, ctx.needs_input_grad[:3]), None, None, None


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, width: int, options: HeadOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Highest logits, their tokens, and the targets' logits; each block competes with the best ones before it."""
    states = hidden.to(options.dtype)
    exact = torch.promote_types(options.dtype, torch.float32)
    target_logit = torch.zeros(len(hidden), dtype=exact, device=hidden.device)
    best, token = target_logit.new_empty(len(hidden), 0), target.new_empty(len(hidden), 0)
    for block in options.blocks(len(hidden), len(weight)):
        logits = options.logits(states, weight[block].to(options.dtype), None if bias is None else bias[block])
        inside, column = within(target, block)
        target_logit = torch.where(inside, logits.gather(1, column).squeeze(1), target_logit)
        logit, picked = logits.topk(min(width, logits.shape[1]), dim=-1)
        best, token = torch.cat([best, logit], 1), torch.cat([token, picked + block.start], 1)
        best, picked = best.topk(min(width, best.shape[1]), dim=-1)
        token = token.gather(1, picked)
    return best, token, target_logit


def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token: Tensor,
    slope: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states, weight and bias from ``slope``, the gradient of each picked raw logit.

    One column at a time, so that no more than ``[n, d]`` numbers are gathered at once. Summed in the slope's dtype, at
    least float32: a frequent token is picked thousands of times, and a bfloat16 sum stops growing at 256 equal terms.
    """
    grad_hidden = torch.zeros(hidden.shape, dtype=slope.dtype, device=hidden.device) if needs[0] else None
    grad_weight = torch.zeros(weight.shape, dtype=slope.dtype, device=weight.device) if needs[1] else None
    grad_bias = None
    if bias is not None and needs[2]:
        grad_bias = torch.zeros(bias.shape, dtype=slope.dtype, device=bias.device)
        grad_bias = grad_bias.index_add_(0, token.flatten(), slope.flatten()).to(bias.dtype)
    for token_column, row in zip(token.unbind(1), slope.unbind(1), strict=True):
        if grad_hidden is not None:
            grad_hidden.addcmul_(weight[token_column].to(row.dtype), row[:, None])
        if grad_weight is not None:
            grad_weight.index_add_(0, token_column, hidden * row[:, None])
    grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
    return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), grad_bias
