"""A job that draws and does not train: an epoch of rounds, in files."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


class DrawRounds(Callback):
    """Draws, scores and selects the rounds of an epoch with the weights that were loaded, and writes their files.

    The weights stay as they are: ``trainer.max_steps`` must be 0. ``rollouts/<number>.jsonl`` has every sample, and
    ``rollouts/groups/<number>.jsonl`` the groups, a data set of the method's kind for ``data=json``. A job that was
    killed reads the rounds that it had written; one that is done is left as it is.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw every round.

        Raises:
            ValueError: the job would train, or draws nothing.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.max_steps != 0:
            raise ValueError(
                f"callbacks=draw writes rounds and trains on nothing, and trainer.max_steps={trainer.max_steps}: set "
                "trainer.max_steps=0, or choose other callbacks"
            )
        if not hasattr(data, "rollout"):
            raise ValueError("callbacks=draw: this job draws no responses; choose rounds=<name>")
        loader = data.train_dataloader()
        for _ in range(loader.rollouts):
            drawn = data.rollout(loader)
            loader.number, loader.cursor = drawn.number + 1, drawn.cursor
