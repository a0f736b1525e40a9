"""Rounds of SPPO, Nash-MD, XPO and KTO: any cut and any number of processes is one run, and so is a killed one."""

from __future__ import annotations

import json
import signal
from functools import partial

import pytest
import torch

from tests.helpers.jobs import differences, final_state, forked, in_processes
from tests.helpers.online import fit, rollouts, trajectory
from tests.helpers.round_methods import METHODS, Circle
from tests.helpers.rounds import data_of
from tests.trajectory.test_online_invariance import assert_same, samples

SGD = partial(torch.optim.SGD, lr=0.05)  # Adam divides tiny gradients by their size, and rounding with them


def run(folder, name, **options):
    chosen = METHODS[name]
    make, data = partial(chosen.module, optimizer=SGD), partial(data_of, rounds=chosen.rounds)
    return trajectory(make, folder, Circle(), data=data, **options)


@pytest.mark.parametrize("name", METHODS)
def test_8x1_is_4x2(tmp_path, name):
    whole = run(tmp_path / "whole", name)
    assert len(set(whole["metrics"]["train/loss"])) > 3
    accumulated = run(tmp_path / "cut", name, accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(tmp_path / "cut")
    assert_same(whole, accumulated)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(tmp_path, name):
    """Matrices of both shares reach both, and each brings its own mismatched rows."""
    whole, folder = run(tmp_path / "whole", name), tmp_path / "two"
    two = in_processes(2, folder, run, folder, name, devices=2, strategy="ddp", accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(folder)
    assert_same(whole, two)


@pytest.mark.parametrize("name", ["sppo", pytest.param("kto", marks=pytest.mark.slow)])
def test_killed_within_a_round_and_resumed(tmp_path, name):
    """The round at hand with its matrices' numbers, those that are carried along, the files."""
    chosen = METHODS[name]
    settings = {"make": chosen.module, "data": partial(data_of, rounds=chosen.rounds), "reward": Circle()}
    settings |= {"max_epochs": 1, "limit_val_batches": 0, "val_check_interval": None}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, **settings)
    assert forked(fit, cut, **settings, kill_at=7) == -signal.SIGKILL
    fit(cut, **settings)
    assert differences(final_state(whole), final_state(cut)) == []
    assert rollouts(whole) == rollouts(cut)
    rows = [json.loads(line) for line in (cut / "rollouts" / "00001.jsonl").read_text().splitlines()]
    assert all((row["wins"] is not None) == (name == "sppo") for row in rows)
