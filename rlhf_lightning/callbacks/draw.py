"""A job that draws responses without training: an epoch of rounds, written to files."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


class DrawRounds(Callback):
    """Draws, scores and selects the rounds of an epoch with the loaded weights, and writes their files.

    The weights do not change: ``trainer.max_steps`` must be 0. ``rollouts/<number>.jsonl`` has every sample, and
    ``rollouts/groups/<number>.jsonl`` the groups, a data set of the method's kind for ``data=json``. A killed job reads
    the rounds that it had written when it is run again; a finished job is not repeated.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw every round.

        Raises:
            ValueError: the job would train, or draws nothing.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.max_steps != 0:
            raise ValueError(
                f"callbacks=draw writes rounds without training, but trainer.max_steps={trainer.max_steps}: set "
                "trainer.max_steps=0, or choose other callbacks"
            )
        if not hasattr(data, "rollout"):
            raise ValueError("callbacks=draw: this job draws no responses; choose rounds=<name>")
        loader = data.train_dataloader()
        for _ in range(loader.rollouts):
            drawn = data.rollout(loader)
            loader.number, loader.cursor = drawn.number + 1, drawn.cursor
