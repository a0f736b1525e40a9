"""A run's identity and options, as its loggers get them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

#: Nodes that say how a run is shown, not what it is.
_SHOWN = ("logger", "allow_targets", "rerun")


def begin_logging(cfg: DictConfig, trainer: Trainer, run_id: str, *, resumed: bool) -> None:
    """Tell the loggers of the first process which run this is, and its options.

    Args:
        cfg: of the run.
        trainer: whose loggers get them.
        run_id: kept in the run's folder.
        resumed: whether the run continues from a checkpoint.
    """
    for logger in trainer.loggers:
        if hasattr(logger, "identify"):
            logger.identify(run_id, resumed=resumed)
        logger.log_hyperparams(flat(cfg))


def flat(cfg: DictConfig) -> dict[str, Any]:
    """Options by their dotted names, as they are written on the command line: ``optimizer.lr``."""
    tree = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(tree, dict)
    return dict(_leaves({name: node for name, node in tree.items() if name not in _SHOWN}))


def _leaves(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
