"""Checks of other inputs of stages than data and weights, before the first runs: rules, examples, vectors, layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.errors import root_cause
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.trust import leaves

if TYPE_CHECKING:
    from rlhf_lightning.models.sources import ModelSource


def check_parts(cfg: DictConfig, chain: Path) -> None:
    """Refuse a transform of prompts, steering vectors or layers that the stage would refuse later.

    What an earlier stage is to leave is not there yet and is left to the stage that reads it.

    Args:
        cfg: of the stage.
        chain: folder of the chain.

    Raises:
        ValueError: a file is missing or holds something else, or the model has no such layer; the message names the
            option.
    """
    from rlhf_lightning.models.blocks import check_layers
    from rlhf_lightning.models.hidden_states.steering import Steerable

    prompting = cfg.get("prompting")
    if prompting and not _awaited(prompting, chain):
        _made(prompting)
    model = cfg.get("model")
    layers = {option: OmegaConf.select(cfg, option) for option in ("layers", "method.layers")}
    read = {option: list(numbers) for option, numbers in layers.items() if OmegaConf.is_list(numbers)}
    if not model or _awaited(model, chain) or not (model.get("steering") or read):
        return
    source: ModelSource = _made(model)
    if isinstance(source, Steerable):
        source.check_steering(source.name, source.sizes)
    for option, numbers in read.items():
        check_layers(option, numbers, source.sizes().layers)


def _made(node: Any) -> Any:
    """Make what a node describes; errors are the original ones, not Hydra's about them."""
    try:
        return make(node)
    except InstantiationException as error:
        raise root_cause(error) from error


def _awaited(node: Any, chain: Path) -> bool:
    """Return whether a node lacks a value, or names something in the chain's folder that is not there yet."""
    if OmegaConf.missing_keys(node):
        return True
    tree: Any = OmegaConf.to_container(node, resolve=True)
    paths = [Path(value) for _, value in leaves(tree, "") if isinstance(value, str) and value.startswith(str(chain))]
    return any(not path.exists() for path in paths)
