"""Where a loader stands within its epoch, in optimiser steps, and what a trainer says of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)


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


def check_state(state: Mapping[str, Any], needed: Collection[str]) -> None:
    """Refuse a loader's state in another form, as other versions of this package wrote it.

    Args:
        state: out of a checkpoint.
        needed: keys of it that a loader reads.

    Raises:
        ValueError: some are missing.
    """
    if missing := sorted(set(needed) - state.keys()):
        raise ValueError(
            f"the state of the training data lacks {', '.join(missing)} (it holds {', '.join(sorted(state))}), so "
            "another version of rlhf-lightning wrote it, which counted otherwise: resume with that version, or start a "
            "new run from these weights with ckpt_path=<this checkpoint> and another paths.output_dir"
        )


def check_changes(state: Mapping[str, Any], changed: Sequence[str]) -> None:
    """Refuse to resume within an epoch whose steps hold something else by now; warn at the beginning of one.

    Args:
        state: of a loader, with its ``epoch`` and ``step``.
        changed: since it was taken, a phrase each.

    Raises:
        ValueError: something has, and the state is from the middle of an epoch.
    """
    if changed and state["step"]:
        raise ValueError(
            f"cannot resume in the middle of epoch {state['epoch']}: {'; '.join(changed)}. Restore these, or start "
            "from scratch with ckpt_path=null"
        )
    if changed:
        log.warning("resuming at the beginning of epoch %d with other batches: %s", state["epoch"], "; ".join(changed))


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
