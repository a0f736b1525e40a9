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
#: Children of PEFT's wrappers through which the wrapped layer is reached; all else in a wrapper is the adapter's.
_INNER = ("base_layer", "original_module", "token_adapter")

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


def is_wrapper(module: nn.Module) -> bool:
    """Return whether PEFT put this around a module; the two methods are what its own unloading goes by."""
    return hasattr(module, "get_base_layer") or hasattr(module, "unload_and_optionally_merge_module")


def adapter_parts(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names that belong to an adapter of any kind, in the state dict of :func:`transformers_model`.

    Matrices and vectors of a layer, copies of modules that are trained in full, rows of embeddings.
    """
    beginnings = []
    for prefix, wrapper in model.named_modules(remove_duplicate=False):
        if is_wrapper(wrapper):
            parts = (*wrapper._modules, *wrapper._parameters, *wrapper._buffers)
            beginnings += [f"{prefix}.{part}" for part in parts if part not in _INNER]
    return tuple(beginnings)


def plain_name(name: str) -> str:
    """A name in the state dict of :func:`transformers_model` as it is without wrappers."""
    return _WRAPPERS.sub("", name)
