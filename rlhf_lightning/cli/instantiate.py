"""Objects out of the checked nodes of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.config_file import literal


def make(node: Any) -> Any:
    """The object that a node describes; None for null and for the empty node of a ``none.yaml``."""
    if not node:
        return None
    # Resolved once, as it was checked; Hydra's instantiate reads text twice, so what looks like an interpolation now
    # would be followed as one.
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return instantiate(literal(literal(plain)), _convert_="all")


def make_all(nodes: DictConfig | Mapping[str, Any] | None) -> list[Any]:
    """The objects of a mapping by name; a name set to null drops one: ``callbacks.samples=null``."""
    return [made for node in (nodes or {}).values() if (made := make(node)) is not None]
