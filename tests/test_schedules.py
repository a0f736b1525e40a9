"""Learning-rate schedules, by hand. Moving any of them by one step breaks the tables."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning import schedules


def rates(schedule, steps: int, **options) -> list[float]:
    """The learning rate that each optimiser step is taken with."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, steps, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_linear_by_hand():
    assert rates(schedules.linear, 6, warmup=2) == pytest.approx([1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4])


def test_cosine_by_hand():
    half = 0.5 * (1 + math.cos(math.pi * 0.5))
    assert rates(schedules.cosine, 3, warmup=1, minimum=0.2) == pytest.approx([1, 1, 0.2 + 0.8 * half])


def test_constant_by_hand():
    assert rates(schedules.constant, 4, warmup=0.5) == pytest.approx([0.5, 1, 1, 1])


def test_inverse_sqrt_by_hand():
    expected = [0.5, 1, math.sqrt(2 / 3), math.sqrt(2 / 4), math.sqrt(2 / 5)]
    assert rates(schedules.inverse_sqrt, 5, warmup=2) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [schedules.constant, schedules.linear, schedules.cosine, schedules.inverse_sqrt])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_step_is_wasted(schedule, steps):
    assert all(0 < rate <= 1 for rate in rates(schedule, steps))


@pytest.mark.parametrize("warmup", [-0.1, 11])
def test_warmup_that_does_not_fit(warmup):
    with pytest.raises(ValueError, match=r"scheduler\.warmup=.* does not fit a run of 10 optimiser steps"):
        schedules.warmup_steps(10, warmup)
