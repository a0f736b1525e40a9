"""A folder of transformers as one GGUF file, which llama.cpp and what stands on it run.

The ``gguf`` package writes the file and knows the names of its tensors; this module knows how a configuration reads in
the format's keys. Written are the architectures that mean the same there in every detail. All else is refused by
its name: a file that loads and computes something else would be worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.files import write_atomically
from rlhf_lightning.models.gguf.tokenizer import OTHER_WAY, add_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter

#: How matrices are stored, by the format's name; vectors are always float32.
PRECISIONS: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
#: Architectures by transformers' ``model_type``, which is the format's name of them too.
FAMILIES = ("llama", "qwen2", "qwen3")
FILE = "model.gguf"
_QUANTIZATION_VERSION = 2  # of ggml's blocks


def check_family(family: str) -> None:
    """Refuse an architecture that is not written.

    Raises:
        ValueError: it is none of :data:`FAMILIES`.
    """
    if family not in FAMILIES:
        raise ValueError(f"the architecture {family} is none of those written ({', '.join(FAMILIES)}): {OTHER_WAY}")


def check_config(config: Any) -> None:
    """Refuse a model that computes what the format's architecture of its name does not.

    Raises:
        ValueError: as above; the message names the field.
    """
    check_family(config.model_type)
    if not (config.architectures or [""])[0].endswith("ForCausalLM"):
        raise ValueError(f"the weights are of {config.architectures}, no language model")
    rope = config.rope_parameters
    plain = rope.get("rope_type", "default") == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    fits = {
        f"rope_parameters={rope}": plain,
        f"hidden_act={config.hidden_act}": config.hidden_act == "silu",
        f"layer_types={sorted(layers)}": layers == {"full_attention"},
        "attention_bias=true": config.model_type == "qwen2" or not getattr(config, "attention_bias", False),
        "mlp_bias=true": not getattr(config, "mlp_bias", False),
    }
    if odd := [field for field, fit in fits.items() if not fit]:
        raise ValueError(f"{config.model_type} with {odd[0]} is not written: {OTHER_WAY}")


def write_gguf(folder: Path, path: Path, precision: str, *, name: str) -> None:
    """Write the model and tokenizer of a folder as a GGUF file, whole or not at all.

    Args:
        folder: what ``save_pretrained`` wrote, in safetensors.
        path: of the file.
        precision: one of :data:`PRECISIONS`. A matrix whose rows are no whole blocks of ``q8_0`` is float16.
        name: of the model, in the file.

    Raises:
        ValueError: the architecture, a field of its configuration or the tokenizer cannot be written.
    """
    from gguf import GGUFWriter
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_config(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def fill(temporary: Path) -> None:
        writer = GGUFWriter(temporary, config.model_type)
        _add_config(writer, config, precision, name)
        add_tokenizer(writer, tokenizer, config.vocab_size)
        for key, values in _weights(folder, config):
            data, kind = _stored(values, precision)
            writer.add_tensor(key, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(path, fill)


def _add_config(writer: GGUFWriter, config: Any, precision: str, name: str) -> None:
    from gguf import LlamaFileType

    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    share = "ALL" if precision == "float32" else "MOSTLY"
    writer.add_file_type(LlamaFileType[f"{share}_{PRECISIONS[precision]}"])
    writer.add_quantization_version(_QUANTIZATION_VERSION)


def _weights(folder: Path, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Each weight of a folder under the format's name, in float32 and in the order of rows that llama.cpp has.

    Raises:
        ValueError: the architecture has no such weight there.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors import safe_open

    names = get_tensor_name_map(MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - it is no mapping
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise ValueError(f"{config.model_type}: the format has no name for {key}: {OTHER_WAY}")
                values = weights.get_tensor(key).float().numpy()
                yield name, _interleaved(values, name, config) if config.model_type == "llama" else values


def _interleaved(values: np.ndarray, name: str, config: Any) -> np.ndarray:
    """Queries and keys of a Llama with the halves of each head's rotation in turns: llama.cpp rotates neighbours."""
    for part, heads in ((".attn_q.", config.num_attention_heads), (".attn_k.", config.num_key_value_heads)):
        if part in name:
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            return halves.swapaxes(1, 2).reshape(values.shape)
    return values


def _stored(values: np.ndarray, precision: str) -> tuple[np.ndarray, Any]:
    """Values as the file holds them, and their type there."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    kind = GGMLQuantizationType[PRECISIONS[precision]]
    if values.ndim == 1:
        kind = GGMLQuantizationType.F32
    elif values.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    return quants.quantize(values, kind), kind
