"""One name for a weight, whatever wraps the model that holds it.

PEFT moves a layer's weight from ``q_proj.weight`` to ``q_proj.base_layer.weight`` and puts its own beside it; other
wrappers insert names of theirs. Fingerprints and merged exports need the name that transformers gave the weight.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|token_adapter|base_layer|original_module)\."
)
#: Parts of a name that belong to an adapter: LoRA and DoRA matrices, copies of modules trained in full, token deltas.
_ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|modules_to_save|token_adapter\.trainable_\w+)\.")

#: Attribute of a loaded model whose weights nobody gets by its name: a phrase that says what they are.
BASE_NOTE = "base_note"
#: Attribute of a model with more token embeddings than its checkpoint: their rows.
ADDED_ROWS = "added_rows"


def transformers_model(module: nn.Module) -> PreTrainedModel:
    """The transformers model in an actor or a PEFT model (its layers still hold the adapter), or the module itself."""
    model: Any = module
    if not hasattr(model, "config") and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model  # an actor
    if hasattr(model, "peft_config"):
        model = model.get_base_model()
    return cast("PreTrainedModel", model)


def of_adapter(name: str) -> bool:
    """Whether a name in the state dict of :func:`transformers_model` belongs to an adapter."""
    return _ADAPTER.search(name) is not None


def plain_name(name: str) -> str:
    """A name in the state dict of :func:`transformers_model` as it is without wrappers."""
    return _WRAPPERS.sub("", name)
