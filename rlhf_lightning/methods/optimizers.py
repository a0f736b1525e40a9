"""Parameter groups and learning-rate schedules from the partials that a yaml makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

#: Parameters of a schedule that mean "the number of optimiser steps of the run".
TOTAL_STEPS = ("total_steps", "num_training_steps", "T_max")


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: matrices, which decay, and vectors, which do not.

    Norm weights and biases are vectors, and pulling them to zero changes the scale of the activations instead of
    regularising. Embeddings and adapter matrices decay.

    Raises:
        ValueError: nothing is trainable.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("the policy has no trainable parameter; check adapter.target_modules")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2]},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_scheduler(
    scheduler: Callable[..., LRScheduler], optimizer: Optimizer, total_steps: Callable[[], int]
) -> LRScheduler:
    """Complete a scheduler partial with its optimiser and the run's number of steps.

    Args:
        scheduler: a partial such as ``partial(cosine, warmup=0.1)``. A parameter named in ``TOTAL_STEPS`` that it
            needs and that the yaml leaves out (or null) becomes the run's number of optimiser steps.
        optimizer: the optimiser it drives.
        total_steps: asked only when the schedule needs it.
    """
    given = dict(getattr(scheduler, "keywords", {}))
    names = inspect.signature(getattr(scheduler, "func", scheduler)).parameters
    open_ended = (inspect.Parameter.empty, None)
    filled = {
        name: total_steps()
        for name in TOTAL_STEPS
        if name in names and given.get(name) is None and (name in given or names[name].default in open_ended)
    }
    return scheduler(optimizer, **filled)
