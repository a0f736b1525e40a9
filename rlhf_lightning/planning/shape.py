"""Shape of a model: everything that its costs are counted from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lightning.models.adapters.lora import Lora

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ModelShape:
    """Numbers of a decoder-only transformer.

    Attributes:
        layers: decoder layers.
        width: of the residual stream.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_width: numbers of a head.
        inner: width of the MLP.
        vocabulary: rows of the head.
        parameters: weights of the base, each counted once.
        embeddings: weights that are looked up and multiplied by nothing; 0 where they are the head too.
        head: weights of the head.
        adapter: weights of an adapter; 0 without one.
        largest: weights of the largest layer, which is gathered at once where weights are sharded.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    vocabulary: int
    parameters: int
    embeddings: int
    head: int
    adapter: int = 0
    largest: int = 0

    @property
    def trainable(self) -> int:
        """Weights that are trained: the adapter's, or all."""
        return self.adapter or self.parameters

    @property
    def matrices(self) -> int:
        """Weights that every token is multiplied by, the head left out."""
        return self.parameters - self.embeddings - self.head

    @property
    def cache_numbers(self) -> int:
        """Numbers that the key-value cache keeps of a token."""
        return 2 * self.layers * self.kv_heads * self.head_width


def shape_of(config: PretrainedConfig, adapter: Lora | None = None) -> ModelShape:
    """Count a model's weights on the meta device, where tensors have shapes and no memory.

    Args:
        config: transformers' configuration of a causal language model.
        adapter: on it; None: all weights are trained.

    Raises:
        ValueError: the model has no attention heads, so that its costs are not those counted here.
    """
    from transformers import AutoModelForCausalLM

    sizes: Any = config
    maker: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: Any = maker.from_config(config)
    if not any("att" in name for name, _ in model.named_modules()):
        raise ValueError(
            f"rlhf plan counts transformers with attention, and a {sizes.model_type} has no attention heads"
        )
    base = sum(parameter.numel() for parameter in model.parameters())
    head, looked_up = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is looked_up.weight
    layers = int(sizes.num_hidden_layers)
    outside = head.weight.numel() + (0 if tied else looked_up.weight.numel())
    heads = int(sizes.num_attention_heads)
    return ModelShape(
        layers=layers,
        width=int(sizes.hidden_size),
        heads=heads,
        kv_heads=int(getattr(sizes, "num_key_value_heads", None) or heads),
        head_width=int(getattr(sizes, "head_dim", None) or sizes.hidden_size // heads),
        inner=_inner(sizes),
        vocabulary=int(sizes.vocab_size),
        parameters=base,
        embeddings=0 if tied else looked_up.weight.numel(),
        head=head.weight.numel(),
        adapter=0 if adapter is None else _adapter_weights(model, adapter),
        largest=max(outside, (base - outside) // max(layers, 1)),
    )


def _inner(config: Any) -> int:
    for name in ("intermediate_size", "ffn_dim", "n_inner"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return 4 * int(config.hidden_size)


def _adapter_weights(model: Any, adapter: Lora) -> int:
    """Weights that an adapter trains; a trained one's configuration is read, its weights are not."""
    from peft import get_peft_model

    config: Any = adapter.config()
    config.init_lora_weights, config.inference_mode = True, False
    if adapter.blocks is not None and adapter.path is None:
        from rlhf_lightning.models.adapters.lora import linear_layers

        config.target_modules = set(linear_layers(model, adapter.blocks, adapter.target_modules))
    with torch.device("meta"):
        adapted = get_peft_model(model, config)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
