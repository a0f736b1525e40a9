"""Folders that hold an adapter, where a model is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.models.adapters.merging import merge_and_unload
from rlhf_lightning.models.loading.naming import BASE_NOTE
from rlhf_lightning.models.loading.weights import load_adapter, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def holds_adapter(folder: str | Path) -> bool:
    """Return whether a folder holds an adapter of PEFT's."""
    return _config(folder).is_file()


def adapter_base(folder: str | Path) -> str | None:
    """Base that the adapter in a folder was trained on; None without an adapter, or where it names none."""
    file = _config(folder)
    return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") if file.is_file() else None


def load_merged(folder: str, options: dict[str, Any]) -> PreTrainedModel:
    """The base of an adapter with the adapter merged into it, a plain model.

    Args:
        folder: of the adapter.
        options: of ``from_pretrained``; of a ``revision`` only the adapter is, so it does not count.

    Raises:
        ValueError: the base does not load by its name, or the adapter is not whole or not for it.
    """
    from transformers import AutoModelForCausalLM

    base = adapter_base(folder)
    options = {name: value for name, value in options.items() if name != "revision"}
    try:
        if base is None:
            raise ValueError("the adapter does not say")
        model = load_model(AutoModelForCausalLM, base, **options)
    except (OSError, ValueError) as error:
        raise ValueError(_both(folder, base, "that base does not load by its name")) from error
    return note_merged(merge_and_unload(load_adapter(model, folder, trainable=False)), folder, base)


def note_merged(model: PreTrainedModel, folder: str | Path, base: str | None) -> PreTrainedModel:
    """Note for exports that the weights are a base's with an adapter in them: nobody gets them by the base's name."""
    setattr(model, BASE_NOTE, f"{base} with the adapter {Path(folder).name} merged into it")
    return model


def refuse_injected(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model, unless transformers has put an adapter of the hub into it.

    Raises:
        ValueError: it has.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(_both(name, model.name_or_path, "an adapter on the hub is not merged by itself"))
    return model


def _config(folder: str | Path) -> Path:
    return Path(folder).expanduser() / "adapter_config.json"


def _both(folder: str, base: str | None, reason: str) -> str:
    return (
        f"model.name={folder!r} is an adapter for {base!r}, and {reason}: give the base and the adapter, "
        f"model.name=BASE adapter=lora adapter.path={folder}"
    )
