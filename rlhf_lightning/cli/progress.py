"""Progress of a checkpoint, read without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from rlhf_lightning.checkpoint_files import read_checkpoint
from rlhf_lightning.cli.errors import ConfigError

#: File of a sharded checkpoint that holds everything but the shards.
_REST = "meta.pt"


@dataclass(frozen=True)
class Progress:
    """Optimiser steps and epochs that lie behind a checkpoint."""

    steps: int
    epochs: int  #: that are complete
    batches: int  #: micro-batches of the epoch that is under way

    @classmethod
    def read(cls, checkpoint: Path) -> Progress:
        """The progress of a checkpoint, a file or a folder of shards.

        Raises:
            ValueError: the file is damaged, or no checkpoint of training.
        """
        if checkpoint.is_dir():
            saved = torch.load(checkpoint / _REST, map_location="cpu", weights_only=True, mmap=True)
        else:
            saved = read_checkpoint(checkpoint)
        fit = saved["loops"]["fit_loop"]
        batches = fit["epoch_loop.batch_progress"]
        complete = bool(batches["is_last_batch"])
        processed = int(fit["epoch_progress"]["current"]["processed"])
        within = 0 if complete else int(batches["current"]["ready"])
        return cls(int(saved["global_step"]), processed + complete, within)

    def finished(self, trainer: Trainer) -> bool:
        """Check whether nothing is left to do."""
        steps, epochs = _limits(trainer)
        return self.steps >= steps or self.epochs >= epochs

    def check(self, trainer: Trainer) -> None:
        """Refuse a run that would have to be shorter than it is.

        Raises:
            ConfigError: it has taken more steps, or begun more epochs, than are asked for.
        """
        steps, epochs = _limits(trainer)
        longer = self.steps > steps or self.epochs > epochs or (self.epochs == epochs and self.batches > 0)
        if longer:
            asked = f"trainer.max_steps={steps:g}" if self.steps > steps else f"trainer.max_epochs={epochs:g}"
            raise ConfigError(
                f"{asked}, and this run has taken {self.steps} steps ({self.epochs} epochs): a run that is resumed can "
                "only become longer; set another paths.output_dir, or rerun=true to run it from scratch in its place"
            )


def _limits(trainer: Trainer) -> tuple[float, float]:
    """Most steps and epochs, infinite where there is no limit."""
    unlimited = float("inf")
    steps, epochs = trainer.max_steps, trainer.max_epochs
    return unlimited if steps == -1 else steps, unlimited if epochs in (None, -1) else epochs
