"""A reference that follows the policy."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


class ReferenceSync(Callback):
    r"""Moves the reference towards the policy every few optimiser steps (TR-DPO, arXiv:2404.09656).

    .. math:: \theta_{ref} \leftarrow \alpha\theta + (1 - \alpha)\theta_{ref}

    Margins fall towards zero at each update, since implicit rewards are then measured against the new reference. The
    updated reference is part of the checkpoint.

    Args:
        every_n_steps: optimiser steps between updates. TRL's default; the paper tunes it.
        alpha: 1: a hard update, the reference becomes the policy; below 1: a soft update. TRL's default.

    Raises:
        ValueError: an option is out of range, or the reference is not a frozen copy when training starts.
    """

    def __init__(self, every_n_steps: int = 512, alpha: float = 0.6) -> None:
        if every_n_steps < 1 or not 0 < alpha <= 1:
            raise ValueError(
                f"callbacks.reference_sync: every_n_steps={every_n_steps} must be >= 1 and alpha={alpha} in (0, 1]"
            )
        self.every_n_steps, self.alpha = every_n_steps, alpha
        self._done = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Refuse references that cannot be updated."""
        if not hasattr(pl_module.reference, "refresh"):
            raise ValueError(
                "callbacks.reference_sync needs a reference that can change: set reference=frozen "
                "(adapter_off is always the base model, cached log-probs belong to the initial one)"
            )
        self._done = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update after the optimiser step; a collective call where weights are sharded."""
        if trainer.global_step == self._done:
            return
        self._done = trainer.global_step
        if trainer.global_step % self.every_n_steps == 0:
            pl_module.reference.refresh(pl_module.policy, self.alpha)
