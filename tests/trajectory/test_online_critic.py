"""PPO with a critic: how a step is cut, sharded, killed and resumed changes nothing; the first ratios are 1."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest
import torch

from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.critics import Costly, ppo_of
from tests.helpers.jobs import differences, final_state, forked, in_processes
from tests.helpers.online import fit, trajectory
from tests.trajectory.test_online_invariance import assert_same, samples

KINDS = ("separate", "shared", "hydra", "adapter")
SGD = partial(torch.optim.SGD, lr=0.05)  # Adam divides tiny gradients by their size, and rounding with them


@pytest.mark.parametrize(("kind", "cost"), [pytest.param("separate", True, marks=pytest.mark.slow), ("shared", False)])
def test_8x1_is_4x2_is_two_processes(tmp_path, kind, cost):
    """Fails when whitening, the value loss or the multiplier knows a micro-batch or a process only."""
    make = partial(ppo_of, kind, cost=cost, optimizer=SGD)
    whole = trajectory(make, tmp_path / "whole", Costly())
    assert len(whole["metrics"]["train/loss/value"]) == 12
    accumulated = trajectory(make, tmp_path / "cut", Costly(), accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(tmp_path / "cut")
    assert_same(whole, accumulated, 2e-4)
    two = tmp_path / "two"
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2}
    parallel = in_processes(2, two, trajectory, make, two, Costly(), **options)
    assert samples(tmp_path / "whole") == samples(two)
    assert_same(whole, parallel, 2e-4)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "separate" else pytest.mark.slow) for kind in KINDS]
)
def test_single_is_fsdp(tmp_path, kind):
    """Two processes, each with half of every weight of policy and critic."""
    make = partial(ppo_of, kind, optimizer=SGD)
    single = trajectory(make, tmp_path / "single", Costly())
    folder = tmp_path / "fsdp"
    sharded = in_processes(2, folder, trajectory, make, folder, Costly(), devices=2, strategy=FSDP2Strategy)
    assert samples(tmp_path / "single") == samples(folder)
    assert_same(single, sharded, 2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_first_ratios_are_exactly_one(tmp_path, kind):
    """Log-probs and values of the rollout come from the forward pass that the first steps repeat."""
    metrics = trajectory(partial(ppo_of, kind), tmp_path, Costly(), accumulate_grad_batches=2)["metrics"]
    assert set(metrics["train/ratio/max"][::4]) == {1.0}
    assert metrics["train/approx_kl"][::4] == [0.0] * 3
    assert metrics["train/value/clip"][::4] == [0.0] * 3
    assert not any(metrics["train/clip/low"][::4] + metrics["train/clip/high"][::4])
    assert min(metrics["train/ratio/max"][1::4]) > 1.0


@pytest.mark.parametrize(
    "kill",
    [
        pytest.param({"kill_call": 3}, id="while-rollout-2-is-drawn", marks=pytest.mark.slow),
        pytest.param({"kill_at": 7}, id="in-the-inner-epochs-of-rollout-1"),
        pytest.param({"kill_at": 12}, id="at-the-end-of-an-epoch", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(tmp_path, kill):
    """Critics, optimiser, KL controller, running scale, multiplier and its window, the rollout with its old values."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options: dict[str, Any] = {"make": partial(ppo_of, "separate", cost=True), "reward": Costly()}
    fit(whole, **options)
    assert forked(fit, cut, **options, **kill) == -signal.SIGKILL
    fit(cut, **options)
    one, other = final_state(whole), final_state(cut)
    assert one["global_step"] == 24
    state = one["state_dict"]
    assert {"assignment.multiplier.log", "assignment.multiplier.costs"} <= state.keys()
    assert any(name.startswith("policy.critics.1.") for name in state)
    assert differences(one, other) == []
