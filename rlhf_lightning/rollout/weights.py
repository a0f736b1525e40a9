"""Configuration and weights of the policy, by transformers' names, for engines with their own copy of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from rlhf_lightning.models.adapters.merging import iterate_base, merged_config, merged_weights
from rlhf_lightning.models.hidden_states.steering import refuse_steered
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.loading.weights import is_quantized
from rlhf_lightning.models.sharding import reshard, whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.models.actor import Actor


#: Reason why the weights of a quantised base are not sent.
QUANTIZED = (
    "a quantised base (adapter.quantize) cannot be given to vLLM: use rollout=transformers, or rollout=vllm_server "
    "with rollout.lora=true and rollout.url of a server that holds the base"
)


def policy_weights(policy: Actor) -> dict[str, Tensor]:
    """The policy's weights by plain name, on the CPU, an adapter's update merged into them; a collective call.

    The merge is made in copies: the policy's own weights are as they were, bit for bit. A tied head is left out, since
    it is the embedding.

    Raises:
        ValueError: the base is quantised, so that its update cannot be merged.
    """
    _check_sent(policy)
    model = transformers_model(policy)
    with whole_weights(policy):
        return _in_checkpoint(model, merged_weights(model))


def ends(policy: Actor) -> list[int]:
    """Token ids that end a response of this policy."""
    token: Any = transformers_model(policy).generation_config.eos_token_id
    return [] if token is None else [int(end) for end in (token if isinstance(token, list) else [token])]


def write_config(policy: Actor, folder: Path, *, merged: bool = True) -> None:
    """The policy's ``config.json``, with the architecture and dtype that the weights have.

    Args:
        policy: whose configuration it is.
        folder: that exists.
        merged: whether the adapter is merged into the weights; False: the folder holds the base.
    """
    model = transformers_model(policy)
    config = merged_config(model) if merged else copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype_name(policy)
    config.save_pretrained(folder)


def dtype_name(policy: Actor) -> str:
    """``float32``, ``bfloat16`` or ``float16``: that of the policy's matrices."""
    reshard(policy)  # gathered ones may be in the dtype that is computed in
    model = transformers_model(policy)
    return str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")


def write_weights(weights: Mapping[str, Tensor], folder: Path, dtype: str) -> None:
    """One ``model.safetensors`` in a dtype, written beside its name and renamed."""
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    file = folder / "model.safetensors"
    part = file.with_suffix(".part")
    state = {
        name: value.to(kind).contiguous() if value.is_floating_point() else value for name, value in weights.items()
    }
    save_file(state, part, metadata={"format": "pt"})
    part.replace(file)


def base_weights(policy: Actor) -> dict[str, Tensor]:
    """The weights beneath the policy's adapter by plain name, on the CPU, without a tied head; collective.

    Raises:
        ValueError: the base is quantised.
    """
    _check_sent(policy)
    model = transformers_model(policy)
    with whole_weights(policy):
        return _in_checkpoint(model, {name: value.to("cpu", copy=True) for name, value in iterate_base(model)})


def _check_sent(policy: Actor) -> None:
    """Refuse a policy whose weights cannot be sent, or are not all that it is."""
    if is_quantized(policy.model):
        raise ValueError(QUANTIZED)
    refuse_steered(policy, "vLLM would sample from another model. Set rollout=transformers")


def _in_checkpoint(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of the architecture's checkpoints, where a mixture's experts are one by one."""
    reverted: dict[str, Tensor] = revert_weight_conversion(model, weights)
    return reverted
