"""Flex attention of a packed row: one fused kernel, compiled once for each kind of attention layer.

Torch counts how often each function is compiled, and past its limit (8) runs it as it stands: for flex attention that
is the full matrix of scores. So every kind of layer has a function of its own, whose number of tokens is dynamic, and
windows and spans reach it as tensors. What remains are rows of one block and of more. Should a function reach the limit
all the same, that is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import BlockMask, flex_attention


class Kind(NamedTuple):
    """Values that a compiled function takes as constants."""

    heads: int
    kv_heads: int
    size: int
    value_size: int
    dtype: torch.dtype
    device: str
    scale: float
    softcap: float | None
    gradients: bool


def flex(
    query: Float[Tensor, "1 heads tokens d"],
    key: Float[Tensor, "1 kv_heads tokens d"],
    value: Float[Tensor, "1 kv_heads tokens e"],
    mask: BlockMask,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "1 tokens heads e"]:
    """Attention output of every token of a packed row. On a CPU there is no fused kernel and no backward pass.

    Raises:
        RuntimeError: torch compiled the kernel too often.
    """
    inputs = (query, key, value)
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    sizes = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
    kind = Kind(*sizes, query.dtype, query.device.type, scale, softcap, gradients)
    try:
        output: Tensor = _compiled(kind)(*inputs, mask)
    except FailOnRecompileLimitHit as error:
        raise RuntimeError(
            f"flex attention of {kind} was compiled {torch._dynamo.config.recompile_limit} times; torch compiles it "
            "no more: without its kernel it would keep the full matrix of scores. TORCH_LOGS=recompiles shows why; "
            "set model.backend=padded, or raise torch._dynamo.config.recompile_limit"
        ) from error
    return output.transpose(1, 2)


@cache
def _compiled(kind: Kind) -> Callable[..., Any]:
    """The function of a kind, with code of its own: torch counts compilations by the code object.

    Its numbers come from text, which stays as it is in a graph. A captured float becomes an input, and with such an
    input in the scores torch cannot make the backward pass.
    """
    scale, softcap, grouped = repr(kind.scale), repr(kind.softcap), kind.heads != kind.kv_heads
    score_mod: Any = None
    if kind.softcap is not None:
        score_mod = lambda score, *_: float(softcap) * torch.tanh(score / float(softcap))  # noqa: E731
    attend: Any = lambda query, key, value, mask: flex_attention(  # noqa: E731
        query, key, value, score_mod=score_mod, block_mask=mask, scale=float(scale), enable_gqa=grouped
    )
    attend.__code__ = attend.__code__.replace()
    backend = "eager" if kind.device == "cpu" else "inductor"
    return torch.compile(attend, dynamic=True, fullgraph=True, backend=backend)
