"""Of what architecture, how deep and how wide a model is, known before its weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Decoder blocks of a model, the width of the states between them, and its architecture (``model_type``)."""

    layers: int
    width: int
    family: str


def sizes_at(location: str | Path, revision: str | None = None) -> Sizes:
    """Sizes of the model in a folder or on the hub, from its configuration; of an adapter, those of its base.

    Raises:
        OSError: there is no configuration.
    """
    return sizes_of(configuration_at(location, revision))


def sizes_of(config: Any) -> Sizes:
    """Sizes in a configuration."""
    return Sizes(int(config.num_hidden_layers), int(config.hidden_size), str(config.model_type))


def configuration_at(location: str | Path, revision: str | None = None, gguf_file: str | None = None) -> Any:
    """Configuration of the text model in a folder or on the hub; of an adapter, that of its base.

    Args:
        location: folder, or hub id.
        revision: of the hub repository.
        gguf_file: in the folder, whose header is read.

    Raises:
        OSError: there is no configuration.
    """
    from transformers import AutoConfig

    from rlhf_lightning.models.adapters.folders import adapter_base

    if gguf_file is not None:
        return AutoConfig.from_pretrained(location, gguf_file=gguf_file)
    base = adapter_base(location)
    where, chosen = (location, revision or "main") if base is None else (base, "main")
    config: Any = AutoConfig.from_pretrained(where, revision=chosen, trust_remote_code=False)
    return config.get_text_config()
