"""Where a loader stands within its epoch, in optimiser steps, and what a trainer says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class StepPosition:
    """Counts the micro-batches that a process was handed, and the optimiser steps that these completed.

    Only whole steps are saved: a number of steps means the same however a step is cut, and a state that is taken in the
    middle of a step is that of the step's beginning, as are the weights.

    Args:
        accumulate: micro-batches that a process accumulates for one optimiser step.
        taken: optimiser steps that were taken in all, such as a trainer's ``global_step``: a step whose last
            micro-batch was handed out may yet fail. None: such a step counts as taken.
    """

    def __init__(self, accumulate: int, taken: Callable[[], int] | None = None) -> None:
        self.accumulate, self.taken = accumulate, taken
        self.handed_out = 0  #: micro-batches of this epoch
        self._before: int | None = None  # steps that were taken when the step at hand began

    def restart(self, step: int = 0) -> None:
        """Stand before a step of the epoch."""
        self.handed_out, self._before = step * self.accumulate, None

    def advance(self) -> None:
        """Count a micro-batch that is about to be handed out."""
        if self.taken is not None and self.handed_out % self.accumulate == 0:
            self._before = self.taken()
        self.handed_out += 1

    @property
    def steps(self) -> int:
        """Steps of this epoch that are done."""
        if self.taken is None or self._before is None:
            return self.handed_out // self.accumulate
        begun = -(-self.handed_out // self.accumulate)
        return begun - (self.taken() == self._before)


def steps_taken(trainer: Any) -> Callable[[], int] | None:
    """The optimiser steps that a trainer has taken, for a loader's position; None where there is no trainer."""
    return None if trainer is None else lambda: int(trainer.global_step)


def check_limit(trainer: Any, length: int) -> None:
    """Refuse a limit on the micro-batches of an epoch that would cut a step in two.

    Args:
        trainer: None: nothing is limited.
        length: micro-batches of a process in an epoch.

    Raises:
        ValueError: such a limit. A part of a step has the denominators of the whole one.
    """
    if trainer is None or trainer.fast_dev_run:
        return
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    count = min(limit, length) if isinstance(limit, int) else int(limit * length)
    if count % accumulate:
        name = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
        raise ValueError(
            f"trainer.{name}={limit} ends an epoch after {count} micro-batches of a process, within a step of "
            f"trainer.accumulate_grad_batches={accumulate}: set it to a multiple, such as {count + -count % accumulate}"
        )
