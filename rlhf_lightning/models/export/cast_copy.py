"""A copy of the policy's weights in another dtype, to sample from: half the bytes to read for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.initialization import no_init_weights

from rlhf_lightning.models import attention
from rlhf_lightning.models.adapters.merging import iterate_merged, merged_config
from rlhf_lightning.models.buffers import keep_float32_buffers
from rlhf_lightning.models.hidden_states.steering import copy_steering
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.loading.weights import is_quantized
from rlhf_lightning.models.sharding import whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.models.actor import Actor


class CastCopy:
    """The policy as a plain transformers model in a dtype, its adapter merged; whole on every process.

    Args:
        policy: whose architecture and device it has.
        dtype: of the copy.

    Raises:
        ValueError: the policy's base is quantised.
    """

    def __init__(self, policy: Actor, dtype: torch.dtype) -> None:
        if is_quantized(policy.model):
            raise ValueError(
                "a quantised base has no weights to cast: set rollout.dtype=null, which samples from the policy itself"
            )
        original: Any = transformers_model(policy)
        with no_init_weights():
            model = type(original)._from_config(merged_config(original), dtype=dtype)
        model.tie_weights()  # left out where weights are not drawn
        keep_float32_buffers(model)
        if getattr(policy, "backend", None) == "packed":
            attention.install(model)  # for its way of decoding
        copy_steering(original, model)
        self.model: PreTrainedModel = model.to(original.device).eval().requires_grad_(False)
        self.model.generation_config = original.generation_config

    @torch.no_grad()
    def refresh(self, policy: Actor) -> None:
        """Take the policy's weights as they are now; a collective call where they are sharded."""
        ours = dict(self.model.named_parameters(remove_duplicate=False)) | dict(self.model.named_buffers())
        with whole_weights(policy):
            for name, value in iterate_merged(transformers_model(policy)):
                ours[name].copy_(value)
