"""Positions of loaders within an epoch, in optimiser steps, and checks of a trainer's limits."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")


class StepPosition:
    """Counts the micro-batches that a process received, and the optimiser steps that these completed.

    Only whole steps are saved: a number of steps means the same however a step is cut, and a state that is taken in the
    middle of a step is that of the step's beginning, as are the weights.

    Args:
        accumulate: micro-batches that a process accumulates for one optimiser step.
        taken: total number of optimiser steps taken, such as a trainer's ``global_step``: a step whose last
            micro-batch was handed out may still fail. None: such a step counts as taken.
    """

    def __init__(self, accumulate: int, taken: Callable[[], int] | None = None) -> None:
        self.accumulate, self.taken = accumulate, taken
        self.handed_out = 0  #: micro-batches of this epoch
        self._before: int | None = None  # steps that were taken when the step at hand began

    def restart(self, step: int = 0) -> None:
        """Set the position to the beginning of a step."""
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


class PositionedLoader(ABC, Generic[BatchT]):
    """A process's training batches, epoch after epoch, with a position that can be saved and restored.

    Each new iteration is the next epoch, from its beginning; the first one after a state was loaded resumes where it
    was taken. Lightning sets the epoch (``set_epoch``), so an epoch that ``limit_train_batches`` cuts short counts as
    an epoch, also after a resume. The state that a subclass saves must be the same on every process, as Lightning keeps
    process 0's state only.

    Args:
        accumulate: micro-batches that a process accumulates for one optimiser step.
        taken: number of optimiser steps taken so far, see :class:`StepPosition`.
    """

    def __init__(self, accumulate: int, taken: Callable[[], int] | None = None) -> None:
        self.epoch = 0
        self.position = StepPosition(accumulate, taken)
        self._fresh = True  # the next iteration belongs to the epoch and position at hand

    @property
    def batch_sampler(self) -> _EpochHook:
        """An object with the hook that Lightning calls to set the epoch."""
        return _EpochHook(self)

    @abstractmethod
    def __len__(self) -> int:
        """Micro-batches of this process in an epoch, the same in every epoch."""

    def __iter__(self) -> Iterator[BatchT]:
        # As a generator this runs when the first batch is asked for, after Lightning's set_epoch.
        if not self._fresh:
            self.begin(self.epoch + 1)
        self._fresh = False
        yield from self.remaining()

    @abstractmethod
    def remaining(self) -> Iterator[BatchT]:
        """The batches of the epoch from the position on; each is counted before it is handed out."""

    def begin(self, epoch: int) -> None:
        """Set the position to the beginning of an epoch."""
        self.epoch = epoch
        self.position.restart()

    def set_epoch(self, epoch: int) -> None:
        """Begin this epoch, or resume it where it was left."""
        if epoch != self.epoch or self.position.handed_out >= len(self):
            self.begin(epoch)
        self._fresh = True

    @abstractmethod
    def units(self) -> dict[str, Any]:
        """The options that define a step, under the names that users set."""

    def saved_position(self) -> dict[str, int]:
        """Epoch, its finished steps, and the micro-batches of a process in a step."""
        step = self.position.steps
        finished = step * self.position.accumulate >= len(self)
        return {
            "epoch": self.epoch + finished,
            "step": 0 if finished else step,
            "accumulate": self.position.accumulate,
        }

    def restore_position(self, state: Mapping[str, Any], units: Mapping[str, Any], *changes: str) -> None:
        """Set the position to that of a state.

        Args:
            state: a state with the entries of :meth:`saved_position`.
            units: result of :meth:`units` at that time.
            *changes: other changes since then, a phrase each.

        Raises:
            ValueError: it is from the middle of an epoch, and the data or an option that defines a step has changed.
        """
        changed = [
            f"{name} was {before} and is {value}"
            for name, value in self.units().items()
            if (before := units.get(name, units.get(name.replace(".loading.", ".")))) != value  # earlier name
        ]
        check_changes(state, [*changed, *changes])
        self.epoch, self._fresh = state["epoch"], True
        self.position.restart(state["step"])


class _EpochHook:
    """Hook for ``loader.batch_sampler.sampler.set_epoch``: torch's protocol for samplers that reshuffle."""

    def __init__(self, loader: PositionedLoader[Any]) -> None:
        self.sampler = loader


def check_state(state: Mapping[str, Any], needed: Collection[str]) -> None:
    """Refuse a loader's state in the form of another version of this package.

    Args:
        state: out of a checkpoint.
        needed: keys of it that a loader reads.

    Raises:
        ValueError: some are missing.
    """
    if missing := sorted(set(needed) - state.keys()):
        raise ValueError(
            f"the state of the training data lacks {', '.join(missing)} (it holds {', '.join(sorted(state))}), so "
            "another version of rlhf-lightning wrote it, with another count: resume with that version, or start a "
            "new run from these weights with ckpt_path=<this checkpoint> and another paths.output_dir"
        )


def check_changes(state: Mapping[str, Any], changed: Sequence[str]) -> None:
    """Refuse to resume within an epoch whose steps have changed; warn at the beginning of one.

    Args:
        state: of a loader, with its ``epoch`` and ``step``.
        changed: changes since it was taken, a phrase each.

    Raises:
        ValueError: there are changes, and the state is from the middle of an epoch.
    """
    if changed and state["step"]:
        raise ValueError(
            f"cannot resume in the middle of epoch {state['epoch']}: {'; '.join(changed)}. Undo these changes, or "
            "start from scratch with ckpt_path=null"
        )
    if changed:
        log.warning("resuming at the beginning of epoch %d with other batches: %s", state["epoch"], "; ".join(changed))


def steps_taken(trainer: Any) -> Callable[[], int] | None:
    """The optimiser steps that a trainer has taken, for a loader's position; None where there is no trainer."""
    return None if trainer is None else lambda: int(trainer.global_step)


def check_limit(trainer: Any, length: int) -> None:
    """Refuse a limit on the micro-batches of an epoch that would end it within a step.

    Args:
        trainer: None: there is no limit.
        length: micro-batches of a process in an epoch.

    Raises:
        ValueError: there is such a limit. A part of a step would have the denominators of the whole step.
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
