"""Random models of every family, small enough to test in a second, with every number-changing feature switched on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 61

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2}

#: Family -> configuration class and what it changes. Windows are shorter than the test's sequences.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GROUPED | {"tie_word_embeddings": True}),
    "llama_biased": ("Llama", _GROUPED | {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": 5}),
    "qwen2": ("Qwen2", _GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3", _GROUPED | {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma": ("Gemma", _GROUPED | {"head_dim": 8}),
    "gemma2": (
        "Gemma2",
        _GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 0.8,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3_text": (
        "Gemma3Text",
        _GROUPED | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 5, "num_hidden_layers": 6},
    ),
    "phi": ("Phi", _GROUPED),  # a head with a bias, rotary embeddings on half of each head
    "phi3": ("Phi3", _GROUPED | {"sliding_window": 6}),
    "gpt2": ("GPT2", _COMMON | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoX", _COMMON | {"rotary_pct": 0.5}),
    "opt": ("OPT", _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 16}),  # embeddings narrower than the trunk
    "granite": (
        "Granite",
        _GROUPED | {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
    ),
    "cohere": ("Cohere", _GROUPED | {"logit_scale": 0.4, "use_qk_norm": True}),
    "smollm3": ("SmolLM3", _GROUPED | {"no_rope_layers": [1, 0]}),
    "olmo2": ("Olmo2", _GROUPED),
    "starcoder2": ("Starcoder2", _GROUPED | {"sliding_window": 5}),
}

#: Models that no packed row can be right for, or whose parity nobody has tested.
UNPACKABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", _COMMON | {"state_size": 4, "intermediate_size": 64}),
    "bloom": ("Bloom", _COMMON | {"n_head": 4, "n_layer": 2}),  # attention biases by distance (ALiBi)
    "gpt_oss": (  # attention sinks and experts
        "GptOss",
        _GROUPED | {"head_dim": 8, "sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "mixtral": (  # experts, whose configuration asks for the router's auxiliary loss
        "Mixtral",
        _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True},
    ),
    "qwen2_moe": (  # experts with a shared one; the second layer is dense
        "Qwen2Moe",
        _GROUPED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [1],
            "output_router_logits": True,
        },
    ),
    "olmoe": ("Olmoe", _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
}

#: Mixtures whose experts lie in stacked parameters; PEFT wraps each of them, one wrapper around the other.
MIXTURES = ("mixtral", "olmoe", "qwen2_moe")

_HEADS = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def tiny_model(family: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random model in float32 and eval mode; weights large enough that mistakes show."""
    name, settings = (CONFIGS | UNPACKABLE)[family]
    config = getattr(transformers, f"{name}Config")(**(settings | options))
    torch.manual_seed(seed)
    model = getattr(transformers, _HEADS.get(name, f"{name}ForCausalLM"))(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.15 if parameter.ndim > 1 else 0.3)
    return model.eval()


def write_gguf(model: Any, path: Path) -> Path:
    """A llama's weights as a GGUF file, without a tokenizer."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
