"""Learning-rate schedules as multipliers of the optimiser's learning rate, one call an optimiser step.

All of them rise linearly from ``1 / warmup steps`` and differ in what follows. ``warmup`` is a share of the run below
1, a number of steps from 1 on, so that one yaml suits a short and a long run. alignment-handbook's recipes use 0.1.

``total_steps`` is the length of the run unless a yaml gives another. A run that is made longer follows the rates of
its new length from there on; given its final length from the beginning (``scheduler.total_steps=3000``), it takes
every step with the rates of the unbroken run.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0) -> LambdaLR:
    """The full learning rate after the warm-up.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimiser steps of the run.
        warmup: share of the run (below 1) or steps (from 1 on).
    """
    return _schedule(optimizer, total_steps, warmup, lambda progress, _: 1.0)


def linear(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1, minimum: float = 0.0) -> LambdaLR:
    """Falls in a straight line to ``minimum`` times the learning rate at the last step.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimiser steps of the run.
        warmup: share of the run (below 1) or steps (from 1 on).
        minimum: share of the learning rate that is left at the end, in [0, 1].
    """
    return _schedule(optimizer, total_steps, warmup, lambda progress, _: minimum + (1 - minimum) * (1 - progress))


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1, minimum: float = 0.0) -> LambdaLR:
    """Falls along half a cosine (arXiv:1608.03983, eq. 5 without restarts) to ``minimum`` times the learning rate.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimiser steps of the run.
        warmup: share of the run (below 1) or steps (from 1 on).
        minimum: share of the learning rate that is left at the end, in [0, 1].
    """
    return _schedule(
        optimizer,
        total_steps,
        warmup,
        lambda progress, _: minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * progress)),
    )


def inverse_sqrt(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.1) -> LambdaLR:
    """Falls with the square root of the step (arXiv:1706.03762, sec. 5.3): ``sqrt(warmup steps / step)``.

    Args:
        optimizer: whose learning rates are scaled.
        total_steps: optimiser steps of the run.
        warmup: share of the run (below 1) or steps (from 1 on); also the time scale of the decay.
    """
    scale = max(warmup_steps(total_steps, warmup), 1)
    return _schedule(optimizer, total_steps, warmup, lambda _, step: math.sqrt(scale / max(step, scale)))


def warmup_steps(total_steps: int, warmup: float) -> int:
    """Steps of the warm-up: ``warmup`` itself from 1 on, below that its share of the run, rounded up.

    Raises:
        ValueError: when it is negative or leaves no step after it.
    """
    steps = math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)
    if warmup < 0 or steps > total_steps:
        raise ValueError(
            f"scheduler.warmup={warmup} does not fit a run of {total_steps} optimiser steps: "
            "give a share of the run in [0, 1) or fewer steps than that"
        )
    return steps


def _schedule(optimizer: Optimizer, total_steps: int, warmup: float, after: Callable[[float, int], float]) -> LambdaLR:
    """LambdaLR of a linear warm-up followed by ``after(progress in [0, 1), step from 1)``."""
    rising = warmup_steps(total_steps, warmup)

    def factor(done: int) -> float:
        # The step about to be taken is done + 1: neither the first nor the last step of a run has rate 0.
        if done < rising:
            return (done + 1) / rising
        progress = (done - rising) / max(total_steps - rising, 1)
        return after(min(progress, 1.0), done + 1)

    return LambdaLR(optimizer, factor)
