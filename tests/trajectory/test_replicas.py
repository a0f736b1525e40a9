"""HSDP: two groups of two processes that each hold the whole model in shards, against one process."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
from lightning.pytorch import Trainer

from rlhf_lightning.models.adapters import Lora
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import in_processes, trajectory
from tests.helpers.online import Unsure
from tests.helpers.online import trajectory as online_trajectory
from tests.helpers.training import preference
from tests.trajectory.test_invariance import assert_same, metrics, tiny
from tests.trajectory.test_online_invariance import RUNS, samples
from tests.trajectory.test_online_invariance import assert_same as assert_same_online

GROUPS = partial(FSDP2Strategy, replicas=2)


class HoldsHalf(L.Callback):
    """Makes sure that a process of four holds half of a weight, not a quarter and not all of it."""

    def on_train_start(self, trainer, module) -> None:
        weight = max(module.policy.parameters(), key=lambda parameter: parameter.numel())
        assert weight.device_mesh.shape == (2, 2)
        assert weight.to_local().numel() * 2 == weight.numel()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, Lora(r=2, alpha=16, seed=5)], ids=["full", "lora"])
def test_a_preference_method_is_that_of_one_process(tmp_path, adapter):
    """Fails when gradients are averaged within a group only, or a clipped norm counts a shard once a group."""
    options = {"gradient_clip_val": 0.5}
    single = trajectory(lambda: tiny("frozen", adapter), tmp_path / "single", metrics(), **options)
    free = trajectory(lambda: tiny("frozen", adapter), tmp_path / "free", metrics())
    assert single["metrics"]["train/loss"] != free["metrics"]["train/loss"], "nothing was clipped"
    folder = tmp_path / "groups"
    options |= {"devices": 4, "strategy": GROUPS, "accumulate_grad_batches": 2}
    parallel = in_processes(
        4, folder, trajectory, lambda: tiny("frozen", adapter), folder, (*metrics(), HoldsHalf()), **options
    )
    assert_same(single, parallel)


@pytest.mark.slow
def test_grpo_is_that_of_one_process(tmp_path):
    """The same samples, too: weights are gathered within each group for a rollout."""
    make = RUNS["filtered"][0]
    single = online_trajectory(make, tmp_path / "single", Unsure())
    folder = tmp_path / "groups"
    parallel = in_processes(4, folder, online_trajectory, make, folder, Unsure(), devices=4, strategy=GROUPS)
    assert samples(tmp_path / "single") == samples(folder)
    assert_same_online(single, parallel)


@pytest.mark.parametrize("replicas", [0, -1, 1.5, True, "two"])
def test_what_is_no_number_of_groups_is_refused(replicas):
    with pytest.raises(ValueError, match=rf"replicas={replicas} is no number of groups from 1 on"):
        FSDP2Strategy(replicas=replicas)


def test_groups_that_the_processes_do_not_fill_are_refused():
    """Before they connect to each other, and before weights load."""
    trainer = Trainer(strategy=FSDP2Strategy(replicas=3), devices=4, accelerator="cpu", logger=False,
                      enable_checkpointing=False)  # fmt: skip
    trainer.strategy.connect(preference())
    with pytest.raises(ValueError, match=r"replicas=3: 4 processes \(1 machines x 4\) cannot be divided"):
        trainer.strategy.setup_environment()
