"""Shared-prefix attention as a transformers attention implementation.

transformers looks an attention function up by ``module.config._attn_implementation`` at every call. The attention
modules of a packed model get a copy of their configuration that names ours; the model's own configuration stays as it
was, so masks for ``generate`` and what ``save_pretrained`` writes are the standard ones. Called without a packed row
(by ``generate``, say), our function hands over to the implementation that the model's configuration names.

The row's layout travels as a keyword argument through the layers. It is not global state, so activation checkpointing
recomputes a layer under the layout it was computed under.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_lightning.ops.attention import Segments, shared_prefix_attention
from rlhf_lightning.ops.block_mask import block_mask, visible_blocks
from rlhf_lightning.ops.flex import flex
from rlhf_lightning.types import PackedBatch

#: The name of our implementation in transformers' registry.
NAME = "rlhf_shared_prefix"

#: Arguments of other attention variants. A layer that passes one computes something that a packed row cannot.
UNSUPPORTED = ("s_aux", "sinks", "position_bias", "head_mask", "alibi")


class Layout:
    """Spans and masks that attention derives from a batch, kept with it for all layers, passes and models.

    The layout holds none of the batch itself but positions: a batch that is done with is freed at once.
    """

    def __init__(self, batch: PackedBatch) -> None:
        self.segments = batch.host.segments  #: spans as integers
        self.positions = batch.positions.int()
        self.masks: dict[int | None, BlockMask] = {}

    @classmethod
    def of(cls, batch: PackedBatch) -> Layout:
        """The layout of a batch; made when it is asked for first."""
        if cls not in batch.derived:
            batch.derived[cls] = cls(batch)
        layout: Layout = batch.derived[cls]
        return layout

    @cached_property
    def spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """Spans of prompts and responses and the parents, in host memory."""
        prompts = torch.tensor(self.segments.prompts, dtype=torch.long).reshape(-1, 2)
        responses = torch.tensor(self.segments.responses, dtype=torch.long).reshape(-1, 3)
        return prompts, responses[:, :2], responses[:, 2]

    @cached_property
    def owners(self) -> tuple[Tensor, Tensor]:
        """For every token its own segment, and the prompt of its group: prompts are numbered before responses."""
        prompts, responses, parent = self.spans
        spans = torch.cat([prompts, responses])
        groups = torch.cat([torch.arange(len(prompts)), parent])
        order = spans[:, 0].argsort()
        lengths = (spans[:, 1] - spans[:, 0])[order]
        segment, group = (each.repeat_interleave(lengths).int() for each in (order, groups[order]))
        device = self.positions.device
        return segment.to(device, non_blocking=True), group.to(device, non_blocking=True)

    def visible(self, window: int | None) -> Callable[..., Tensor]:
        """Mask of the keys that a query sees, in the form of flex attention: by batch, head, query and key index.

        The window is in a tensor, the first position that each token sees, so that no number is compiled into a kernel.
        """
        (segment, prompt), position = self.owners, self.positions
        oldest = torch.zeros_like(position) if window is None else position - (window - 1)

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            related = (segment[key] == segment[query]) | (segment[key] == prompt[query])
            return related & (position[key] <= position[query]) & (position[key] >= oldest[query])

        return sees

    def block_mask(self, window: int | None) -> BlockMask:
        """Flex attention's block mask for a window, made when the first layer asks for it."""
        if window is not None and window >= self.segments.longest:
            window = None
        if window not in self.masks:
            tokens = len(self.positions)
            prompts, responses, parent = (each.numpy() for each in self.spans)
            partial, full = visible_blocks(prompts, responses, parent, tokens, window)
            self.masks[window] = block_mask(partial, full, self.visible(window), tokens, self.positions.device)
        return self.masks[window]


@dataclass
class SharedPrefix:
    """The layout of a packed row on its way through the layers of one forward pass."""

    layout: Layout
    used: bool = False  #: whether an attention layer was given it

    def check_used(self, trunk: nn.Module) -> None:
        """Refuse a forward pass whose attention never saw the layout: its tokens attended to other responses.

        Raises:
            RuntimeError: the model's ``forward`` did not hand its keyword arguments on to its layers.
        """
        if not self.used:
            raise RuntimeError(
                f"{type(trunk).__name__} does not hand the layout of a packed row on to its attention layers under "
                f"transformers {transformers.__version__}; set model.backend=padded"
            )


def install(model: PreTrainedModel) -> None:
    """Let every attention module of a model understand packed rows; a second call changes nothing.

    Raises:
        ValueError: the model has no attention module that follows transformers' attention interface.
    """
    modules: list[Any] = [m for m in model.modules() if _is_attention(m)]
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no attention module that takes an attention implementation; use backend=padded"
        )
    for module in modules:
        if module.config._attn_implementation != NAME:
            module.standard_config = module.config
            module.config = copy.copy(module.config)
            module.config._attn_implementation_internal = NAME


def _is_attention(module: nn.Module) -> bool:
    return (
        not isinstance(module, PreTrainedModel)
        and "Attention" in type(module).__name__
        and hasattr(getattr(module, "config", None), "_attn_implementation")
    )


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    shared_prefix: SharedPrefix | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that layers call: ``[1, heads, tokens, d]`` in, ``[1, tokens, heads, d]`` out.

    Args:
        module: the attention layer.
        query: queries of all heads.
        key: keys, of fewer heads under grouped-query attention.
        value: values.
        attention_mask: ignored for a packed row, whose layout says who sees whom.
        shared_prefix: the packed row's layout; None: the model's standard implementation computes this call.
        options: ``scaling``, ``dropout``, ``sliding_window`` and ``softcap`` are honoured.

    Raises:
        ValueError: the layer asks for something that a packed row cannot compute.
    """
    if shared_prefix is None:
        if _decodes(module, query, key, attention_mask, options):
            return _grouped(query, key, value, attention_mask, options.get("scaling")), None
        result: tuple[Tensor, Tensor | None] = _standard(module)(module, query, key, value, attention_mask, **options)
        return result
    shared_prefix.used = True
    asked = [name for name in UNSUPPORTED if options.get(name) is not None]
    if asked or options.get("is_causal") is False:
        raise ValueError(f"{type(module).__name__} uses {asked or 'bidirectional attention'}; use backend=padded")
    scale, window, softcap = (options.get(name) for name in ("scaling", "sliding_window", "softcap"))
    dropout = options.get("dropout") or 0.0
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    query, key, value = (x.to(dtype) for x in (query, key, value))
    if dropout:
        output = _with_dropout(query, key, value, shared_prefix.layout.segments, scale, window, softcap, dropout)
    elif kind == "cuda":
        output = flex(query, key, value, shared_prefix.layout.block_mask(window), scale=scale, softcap=softcap)
    else:
        output = shared_prefix_attention(
            query[0], key[0], value[0], shared_prefix.layout.segments, scale=scale, window=window, softcap=softcap
        )[None]
    return output, None


def _decodes(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Return whether one token a row attends, under grouped queries, in a way that torch's attention knows."""
    return (
        query.shape[2] == 1
        and query.shape[1] > key.shape[1]
        and module.standard_config._attn_implementation == "sdpa"
        and not options.get("dropout")
        and all(options.get(name) is None for name in ("softcap", *UNSUPPORTED))
        and (mask is None or mask.shape[1:3] == (1, 1))
    )


def _grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attention of one token a row: the heads that share a key head are its queries, side by side.

    transformers repeats keys and values for every head when there is a mask; that copy, at each token and layer, costs
    more than the attention itself. Without a mask torch's kernel takes each head alone, which in bfloat16 is four times
    as slow.
    """
    rows, heads, _, size = query.shape
    shared = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    seen = None if mask is None else mask[..., : key.shape[2]]
    output = F.scaled_dot_product_attention(shared, key, value, attn_mask=seen, scale=scale)
    return output.reshape(rows, 1, heads, value.shape[-1])


def _standard(module: Any) -> Any:
    """The attention function that the model's own configuration names."""
    name = module.standard_config._attn_implementation
    if name != "eager":
        return ALL_ATTENTION_FUNCTIONS[name]
    for kind in type(module).__mro__:
        if hasattr(sys.modules[kind.__module__], "eager_attention_forward"):
            return sys.modules[kind.__module__].eager_attention_forward
    raise ValueError(f"{type(module).__name__} has no eager attention; load the model with attention=sdpa")


def _with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Each prompt and each response by a call of torch's attention, which drops probabilities."""
    if softcap is not None:
        raise ValueError("attention dropout with a soft-cap on the scores needs backend=padded (or dropout 0)")
    output = torch.empty_like(query)
    for block in segments.blocks(window, rows=None):
        output[:, :, block.start : block.stop] = F.scaled_dot_product_attention(
            query[:, :, block.start : block.stop],
            block.take(key),
            block.take(value),
            attn_mask=block.visible(query.device),
            dropout_p=dropout,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    return output.transpose(1, 2)


AttentionInterface.register(NAME, attention_forward)
