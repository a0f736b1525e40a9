"""Keys and values of a beginning that all prompts have in common, computed once and copied into every batch.

A prompt of worked examples has a thousand constant tokens in front of a question of twenty. A chat template needs none
of this: its constant part is a few tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_lightning.models.decoding.growing_cache import growing_cache
from rlhf_lightning.models.forwarding import cache_name, takes, without_router_loss
from rlhf_lightning.types import PromptForm

log = logging.getLogger(__name__)

#: Tokens from which on a beginning is worth it.
_WORTH = 16


@dataclass(frozen=True)
class SharedPrefix:
    """Keys and values of ``length`` tokens, ``[1, heads, length, d]`` a layer."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def fill(self, cache: Any, rows: int) -> None:
        """Put them into an empty cache, once a row."""
        for number, (keys, values) in enumerate(self.layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)


@torch.no_grad()
def shared_prefix(model: Any, prompts: Sequence[Sequence[int]], form: PromptForm) -> SharedPrefix | None:
    """Compute the constant beginning of prompts; None where there is none worth it, or the model cannot continue one.

    Layers with a sliding window count positions from the padded beginning, and models without ``position_ids`` count
    them from the cache: both compute each prompt whole.
    """
    length = form.common_tokens(prompts)
    cache: Any = growing_cache(model.config) if length >= _WORTH else None
    name = cache_name(model)
    if cache is None or name is None or not takes(model, "position_ids"):
        return None
    if any(
        isinstance(layer, DynamicSlidingWindowLayer) or not isinstance(layer, DynamicLayer) for layer in cache.layers
    ):
        return None
    ids = torch.as_tensor([list(prompts[0][:length])], device=model.device)
    keep = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    model(input_ids=ids, **{name: cache}, use_cache=True, **keep, **without_router_loss(model))
    different = len({tuple(prompt) for prompt in prompts})
    if different > 1:
        saved = length * (different - 1)
        log.info("%d prompts begin with the same %d tokens, computed once: %d tokens saved", different, length, saved)
    return SharedPrefix(length, tuple((layer.keys, layer.values) for layer in cache.layers))
