"""The plain weights of an adapted model, by transformers' names: with the adapter merged into them, or without it.

Merged exports, the rollout copy and vLLM take their weights from here. Every wrapper of PEFT is copied, merged by
PEFT's own code and read, one at a time, so any kind of adapter is merged as PEFT merges it, the trained weights are
never touched (a merge that is undone in place rounds half-precision weights), and memory is that of one wrapper.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.adapters.lora import without_adapter
from rlhf_lightning.models.loading.naming import is_wrapper, plain_name


@torch.no_grad()
def merged_weights(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Copies of the weights that :func:`iterate_merged` yields, on the CPU."""
    return {name: value.to("cpu", copy=True) for name, value in iterate_merged(model, adapter)}


@torch.no_grad()
def iterate_merged(model: nn.Module, adapter: str = "default") -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight of a transformers model with the adapter's update in it, on the model's device.

    A weight that is another one of the model (a tied head) is left out. Where an adapter trains a tied head apart of
    its embedding both are there, and :func:`merged_config` says so; PEFT's ``merge_and_unload`` would add the
    embedding's update to the head too. A value is right until the next one is asked for.

    Args:
        model: whole on this process; its layers may hold an adapter.
        adapter: name of the adapter.

    Raises:
        ValueError, RuntimeError, NotImplementedError: PEFT cannot merge this kind of adapter.
    """
    left_out = tied_names(model)
    for name, value in _weights(model, lambda layer: _merged(layer, adapter)):
        if name not in left_out:
            yield name, value


@torch.no_grad()
def iterate_base(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each weight beneath the adapter; a tied head is left out."""
    left_out = tied_names(model, adapter=False)
    yield from ((name, value) for name, value in _weights(model, without_adapter) if name not in left_out)


def tied_names(model: nn.Module, *, adapter: bool = True) -> frozenset[str]:
    """Names of weights that are another weight of the model, such as a head that is the embedding.

    Args:
        model: a transformers model, whose layers may hold an adapter.
        adapter: whether a head counts only as tied if its adapter is the embedding's too.
    """
    beneath: Callable[[nn.Module], nn.Module] = (lambda part: part) if adapter else without_adapter
    return frozenset(name for name, other in _declared(model).items() if not _apart(model, name, other, beneath))


def merged_config(model: Any) -> Any:
    """A copy of the configuration that fits the merged weights: not tied where an adapter trained the head apart."""
    config = copy.deepcopy(model.config)
    if _declared(model).keys() - tied_names(model):
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
    return config


@torch.no_grad()
def merge_and_unload(model: Any) -> Any:
    """PEFT's ``merge_and_unload`` of a PEFT model, in place, with a tied head that the adapter trained apart kept so.

    Returns:
        The plain model, all of whose weights can be trained again.
    """
    base = model.get_base_model()
    for name in _declared(base).keys() - tied_names(base):
        owner: Any = without_adapter(base.get_submodule(name.rpartition(".")[0]))
        owner.weight = nn.Parameter(owner.weight.detach().clone())
    return model.merge_and_unload().eval().requires_grad_(True)


@torch.no_grad()
def check_mergeable(model: Any, adapter: str = "default") -> None:
    """Try the merge on one layer of each kind.

    Args:
        model: a transformers model with an adapter, whole on this process.
        adapter: its name.

    Raises:
        ValueError: this adapter cannot be merged.
    """
    tried: set[Any] = set()
    names: set[str] = set()

    def once(layer: nn.Module) -> nn.Module:
        kind = (type(layer), *sorted((name, value.ndim) for name, value in layer.named_parameters()))
        if kind in tried:
            return without_adapter(layer)
        tried.add(kind)
        return _merged(layer, adapter)

    try:
        names.update(name for name, _ in _weights(model, once))
    except (ValueError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise ValueError(
            f"PEFT cannot merge this adapter into its base ({str(error).splitlines()[0]}): choose form=adapter, or an "
            "adapter that can be merged"
        ) from error
    with torch.device("meta"):
        expected = set(type(model)(model.config).state_dict())
    if odd := sorted(names - expected):
        raise ValueError(
            f"this adapter changes the model's layers, so it cannot be merged into the weights (for example {odd[0]}): "
            "choose form=adapter"
        )


def _weights(
    module: nn.Module, beneath: Callable[[nn.Module], nn.Module], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers by plain name; of a wrapper of PEFT those of what ``beneath`` makes of it.

    Not ``state_dict()``: FSDP2's hooks would shard the weights again.
    """
    for key, value in (*module._parameters.items(), *module._buffers.items()):
        if value is not None and key not in module._non_persistent_buffers_set:
            yield plain_name(prefix + key), value.detach()
    for key, child in module._modules.items():
        if child is not None:
            inner = beneath(child) if is_wrapper(child) else child
            yield from _weights(inner, beneath, f"{prefix}{key}.")


def _merged(layer: nn.Module, adapter: str) -> nn.Module:
    """Layer that PEFT's ``merge_and_unload`` puts in place of a wrapper, made from a copy of it.

    Wrappers may be nested (one for each parameter of a mixture's experts), and then know how they are taken apart.
    """
    copied: Any = copy.deepcopy(layer)
    if hasattr(copied, "unload_and_optionally_merge_module"):
        merged: nn.Module = copied.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=[adapter]
        )
        return merged
    copied.merge(safe_merge=False, adapter_names=[adapter])
    plain: nn.Module = copied.get_base_layer()
    return plain


def _declared(model: nn.Module) -> dict[str, str]:
    """Weights that the architecture ties, each with the one that it is; empty where the configuration unties them."""
    pairs: dict[str, str] | None = getattr(model, "all_tied_weights_keys", None)
    return pairs or {}


def _apart(model: nn.Module, first: str, second: str, beneath: Callable[[nn.Module], nn.Module]) -> bool:
    """Return whether two weights that the architecture ties come from different tensors; a dropped head does not."""
    parts = [model.get_submodule(name.rpartition(".")[0]) for name in (first, second) if _exists(model, name)]
    addresses = [{_address(parameter) for parameter in beneath(part).parameters()} for part in parts]
    return len(parts) == 2 and addresses[0] != addresses[1]


def _exists(model: nn.Module, name: str) -> bool:
    """Return whether the module that holds a weight is there: a scorer has dropped the head over the vocabulary."""
    *parents, owner, _ = name.split(".")
    return getattr(model.get_submodule(".".join(parents)), owner, None) is not None


def _address(parameter: nn.Parameter) -> int:
    return id(parameter) if hasattr(parameter, "full_tensor") else parameter.data_ptr()
