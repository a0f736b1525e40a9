"""Options of a ``Trainer`` that a loader whose batches are drawn on demand cannot work with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler


def check_trainer(trainer: Any) -> None:
    """Refuse options that repeat batches, make loaders again or change the accumulation.

    Args:
        trainer: the trainer; None: there is none.

    Raises:
        ValueError: it has one of them; the message names the option.
    """
    if trainer is None:
        return
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        raise ValueError(
            "GradientAccumulationScheduler changes how many micro-batches a step has, which a rollout is cut into "
            "ahead; set trainer.accumulate_grad_batches to one number"
        )
    if trainer.overfit_batches:
        raise ValueError(
            f"trainer.overfit_batches={trainer.overfit_batches} repeats batches, and every rollout is a new one: "
            "to learn a few prompts by heart let the data have no others (data.source.limit=8 data.batch_size=8)"
        )
    if trainer.reload_dataloaders_every_n_epochs:
        raise ValueError(
            f"trainer.reload_dataloaders_every_n_epochs={trainer.reload_dataloaders_every_n_epochs} would begin "
            "the rollouts again at the first prompt: set it to 0, every rollout is a new one in any case"
        )
