"""Lightning's counters of micro-batches, kept to whole optimiser steps.

A loader's position is a number of steps (``data.batches.loader_position``), and weights and optimiser change at the end
of a step only. Lightning counts the micro-batches of a process beside them. In a checkpoint these counters are set to
the end of the last whole step, so that no state is saved while gradients are accumulated; a run that resumes with other
micro-batches counts the same steps in its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

from rlhf_lightning.checkpointing import reopen_validation, validation_pending

_BATCHES = "epoch_loop.batch_progress"
_OPTIMIZER = "epoch_loop.automatic_optimization.optim_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


def settle(fit_loop: dict[str, Any], trainer: Trainer) -> None:
    """Set the counters of a checkpoint that was taken within a step to the end of the step before, in place.

    Whatever saves then, a resume begins with the whole step: a signal or an error in one of its micro-batches, a clock,
    a validation between two of them. That validation runs again when its micro-batch comes; one that is due or under
    way at the end of a step runs, whole, when the run resumes.

    Args:
        fit_loop: the state of Lightning's fit loop.
        trainer: that saves.
    """
    accumulate = trainer.accumulate_grad_batches
    batches, optimizer = fit_loop[_BATCHES], fit_loop[_OPTIMIZER]["optimizer"]
    current, total = batches["current"], batches["total"]
    done = optimizer["step"]["current"]["completed"] * accumulate
    begun = current["ready"] - done
    if begun < 0 or (begun == 0 and current["processed"] == done):
        if validation_pending(trainer):
            reopen_validation(fit_loop)
        return
    for counters, count in ((total, total["ready"] - begun), (current, done)):
        # As they are when a callback saves at the end of a step.
        counters.update(ready=count, started=count, processed=count, completed=count - 1)
    if begun:
        batches["is_last_batch"] = False
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    for part in ("total", "current"):
        steps = optimizer["step"][part]["completed"]
        optimizer["step"][part]["ready"] = steps
        optimizer["zero_grad"][part].update(ready=steps, started=steps, completed=steps)
    validation = fit_loop[_VALIDATION]
    for part in ("total", "current"):
        validation[part].update(dict.fromkeys(validation[part], 0))
    validation["is_last_batch"] = False


def restore_loader(trainer: Any, states: Sequence[dict[str, Any]]) -> None:
    """Put the training loader where a checkpoint left it, and Lightning's counters of its micro-batches with it.

    Args:
        trainer: that resumes.
        states: of the loader, out of the checkpoint; none: the run begins.

    Raises:
        ValueError: the loader cannot take such a state.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for state in states:
        try:
            trainer.train_dataloader.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{trainer.ckpt_path}: {error}") from error
        if "accumulate" in state:
            cut = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
            progress.load_state_dict(recount(progress.state_dict(), state["accumulate"], *cut))


def recount(batches: dict[str, Any], before: int, now: int, epoch: int) -> dict[str, Any]:
    """Counters of the end of a step in other micro-batches.

    Args:
        batches: the state of Lightning's progress of training batches.
        before: micro-batches of a process for a step that they count.
        now: the same from now on.
        epoch: micro-batches of a process in an epoch from now on.
    """
    converted = dict(batches)
    for part in ("total", "current"):
        counters = batches[part]
        count = counters["ready"] // before * now
        if part == "current" and batches["is_last_batch"]:
            count = epoch
        converted[part] = {name: count - counters["ready"] + number for name, number in counters.items()}
    return converted
