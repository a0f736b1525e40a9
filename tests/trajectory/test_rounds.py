"""Rounds of groups: any cut and any number of processes is the same run, and a kill changes no bit of it."""

from __future__ import annotations

import signal
from functools import partial

import pytest
import torch

from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import differences, final_state, in_processes, ranks
from tests.helpers.online import Unsure, fit, rollouts, trajectory
from tests.helpers.rounds import assert_resumes, data_of, module_of, rounds_of
from tests.trajectory.test_online_invariance import assert_same, samples

SGD = partial(torch.optim.SGD, lr=0.05)  # Adam divides tiny gradients by their size, and rounding with them
#: What a checkpoint has to hold of earlier rounds: a reference that moves, and groups that come again.
KEEPING = rounds_of(reference="previous_round", carry="previous", inner_epochs=2)
MOVING = rounds_of(reference="ema", max_refills=1, inner_epochs=2)
#: Two steps of a round, two times; a checkpoint after every third step.
KILLS = [
    pytest.param({"kill_call": 2}, id="while-round-1-is-drawn"),
    pytest.param({"kill_at": 4}, id="between-round-1-and-its-first-step"),
    pytest.param({"kill_at": 7}, id="in-the-inner-epochs-of-round-1"),
]


def run(folder, rounds, **options):
    return trajectory(
        partial(module_of, optimizer=SGD), folder, Unsure(), data=partial(data_of, rounds=rounds), **options
    )


@pytest.mark.parametrize("rounds", [KEEPING, MOVING], ids=["previous_round", "ema"])
def test_8x1_is_4x2(tmp_path, rounds):
    whole = run(tmp_path / "whole", rounds)
    assert len(whole["metrics"]["train/loss"]) == 12
    assert len(set(whole["metrics"]["train/loss"])) > 6
    accumulated = run(tmp_path / "cut", rounds, accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(tmp_path / "cut")
    assert_same(whole, accumulated)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", FSDP2Strategy])
def test_two_processes_are_one(tmp_path, strategy):
    """Each draws and scores its share; with FSDP2 the reference that moves is sharded too."""
    whole, folder = run(tmp_path / "whole", MOVING), tmp_path / "two"
    two = in_processes(2, folder, run, folder, MOVING, devices=2, strategy=strategy, accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(folder)
    assert_same(whole, two)


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rounds", [KEEPING, pytest.param(MOVING, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_resumed(tmp_path, accumulate, rounds, kill):
    """Weights, optimiser, reference, the round at hand, those that are carried along, the files."""
    settings = {"make": module_of, "data": partial(data_of, rounds=rounds), "accumulate_grad_batches": accumulate}
    assert_resumes(tmp_path, kill, **settings)


@pytest.mark.slow
def test_killed_and_resumed_in_two_processes(tmp_path):
    settings = {"make": module_of, "data": partial(data_of, rounds=KEEPING), "strategy": "ddp", "devices": 2}
    settings |= {"max_epochs": 1, "limit_val_batches": 0, "val_check_interval": None}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert ranks(2, fit, whole, **settings) == [0, 0]
    assert ranks(2, fit, cut, **settings, kill_at=7) == [-signal.SIGKILL] * 2
    assert ranks(2, fit, cut, **settings) == [0, 0]
    assert differences(final_state(whole), final_state(cut)) == []
    assert rollouts(whole) == rollouts(cut)
