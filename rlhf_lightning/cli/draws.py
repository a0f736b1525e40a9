"""Check whether a job learns from responses that its policy draws, by its configuration and its method."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from rlhf_lightning.data.kinds import PROMPTS


def draws(cfg: DictConfig, method: Any) -> bool:
    """Return whether the job draws responses to prompts: its rounds do, or its method does by itself.

    Args:
        cfg: of the run.
        method: class or module.
    """
    return bool(cfg.get("rounds")) or bool(method.draws)


def kind_read(cfg: DictConfig, method: Any, kind: str) -> str:
    """Return the kind of data that a job reads: prompts where it draws the responses.

    Args:
        cfg: of the run.
        method: class or module.
        kind: what the method's batches hold.
    """
    return PROMPTS if draws(cfg, method) else kind
