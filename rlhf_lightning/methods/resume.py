"""Optimiser and schedule of a resumed run: what comes from the checkpoint, and what from the run's options."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlhf_lightning.methods.optimizers import TOTAL_STEPS, make_scheduler

log = logging.getLogger(__name__)

#: Options of a parameter group that loading a checkpoint puts back, whatever the run's own options say.
_COMPARED = ("weight_decay", "eps")


@dataclass(frozen=True)
class Replay:
    """A schedule's first steps without a model: the rates they are taken with, and where it then stands."""

    rates: list[list[float]]  #: of each step taken, and of the next one; one number a parameter group
    optimizer: Optimizer
    scheduler: LRScheduler

    @classmethod
    def of(
        cls, schedule: Callable[..., LRScheduler], groups: Sequence[Mapping[str, Any]], total: int, steps: int
    ) -> Replay:
        """Take the steps.

        Args:
            schedule: a partial, as a yaml makes it.
            groups: options of the optimiser's parameter groups; ``initial_lr`` is where the rates start.
            total: optimiser steps of the run.
            steps: to take.
        """
        optimizer = _Rates([{**group, "lr": group["initial_lr"]} for group in groups])
        scheduler = make_scheduler(schedule, optimizer, lambda: total)
        rates = [optimizer.rates()]
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.rates())
        return cls(rates, optimizer, scheduler)


class _Rates(Optimizer):
    """Parameter groups with their options and nothing to train."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        super().__init__([{**group, "params": [Tensor()]} for group in groups], dict(groups[0]))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing; schedulers expect a step of the optimiser before theirs."""

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.param_groups]


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Options of an optimiser's parameter groups, without their parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def check_options(configured: Sequence[Mapping[str, Any]], optimizer: Optimizer) -> None:
    """Refuse options that loading a checkpoint has silently replaced by those that it was written with.

    Args:
        configured: options of the parameter groups before the checkpoint was loaded.
        optimizer: after it.

    Raises:
        ValueError: a learning rate, weight decay or epsilon is another.
    """
    for now, loaded in zip(configured, options_of(optimizer), strict=False):
        rate = "initial_lr" if "initial_lr" in now and "initial_lr" in loaded else "lr"
        for name in (rate, *_COMPARED):
            if name in now and name in loaded and now[name] != loaded[name]:
                option = "lr" if name == rate else name
                raise ValueError(
                    f"optimizer.{option} is {now[name]:g}, and the checkpoint's optimiser has {loaded[name]:g}: resume "
                    "with the option that the run was begun with, or start a run of its own from these weights "
                    "(rlhf train paths.output_dir=<new folder> ckpt_path=<this checkpoint>)"
                )


def lengthen(
    schedule: Callable[..., LRScheduler], scheduler: LRScheduler, *, before: int | None, now: int, done: int
) -> int:
    """Put a resumed schedule where it stands in a run of another length, which it then follows to its end.

    Args:
        schedule: the partial that ``scheduler`` was made from.
        scheduler: as the checkpoint left it.
        before: optimiser steps of the run that wrote the checkpoint; None: unknown.
        now: optimiser steps of this run.
        done: steps taken.

    Returns:
        How many of the steps were taken with other rates than in a run of the present length; 0: resuming is exact.
    """
    optimizer = scheduler.optimizer
    rates, groups = [float(group["lr"]) for group in optimizer.param_groups], options_of(optimizer)
    replay = Replay.of(schedule, groups, now, done)
    for group, options in zip(optimizer.param_groups, options_of(replay.optimizer), strict=True):
        group.update(options)
    scheduler.load_state_dict(replay.scheduler.state_dict())
    if before is None:
        return 0 if rates == replay.rates[-1] else done
    taken = Replay.of(schedule, groups, before, done).rates[:done]
    return sum(one != other for one, other in zip(taken, replay.rates[:done], strict=True))


def report_length(differing: int, *, before: int | None, now: int, done: int) -> None:
    """Log what another length means for the learning rates."""
    if not differing:
        text = "%-9s of %d steps in place of %s; the %d steps taken had the same learning rates"
        log.info(text, "schedule", now, before, done)
        return
    log.warning(
        "the learning rates from step %d on are those of a run of %d steps, and %d of the %d steps before had those of "
        "a run of %s: the end is not that of an unbroken run. For that give the schedule its length from the beginning "
        "(scheduler.total_steps=%d), or choose scheduler=constant",
        done + 1,
        now,
        differing,
        done,
        before or "another length",
        now,
    )


def report_early_end(schedule: Callable[..., LRScheduler], steps: float) -> None:
    """Warn of a schedule whose own length ends before the run: what follows has its last rate, often 0.

    Args:
        schedule: a partial, as a yaml makes it.
        steps: optimiser steps of the run.
    """
    given = getattr(schedule, "keywords", {}) if steps < sys.maxsize else {}  # else it has no end
    for name in TOTAL_STEPS:
        if (length := given.get(name)) is not None and length < steps:
            log.warning(
                "scheduler.%s=%d ends before the run of %d steps, whose rest has the rate of the schedule's end",
                *(name, length, steps),
            )
