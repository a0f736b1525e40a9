"""The exact KL under accumulation, DDP and FSDP2, of all weights and of an adapter: the same run as on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf_lightning.credit import grpo
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import KLPenalty, PolicyGradient
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.strategies import FSDP2Strategy
from tests.helpers.jobs import in_processes
from tests.helpers.online import OPTIONS, module_of, trajectory
from tests.trajectory.test_online_invariance import SGD, assert_same, samples

ADAPTIVE: dict[str, Any] = {"controller": "adaptive", "target": 0.05, "horizon": 100}


def adapted() -> PolicyGradient:
    """Activations are computed again in the backward pass; the reference is the policy without its adapter."""
    source = TinyRandom(hidden_size=16, intermediate_size=32, gradient_checkpointing=True)
    models, kl = ModelBuilder(source, Lora(r=4, seed=0), "adapter_off"), KLPenalty("loss", "full", 0.5, **ADAPTIVE)
    return PolicyGradient(models, ppo, SGD, advantage=grpo, rollout=OPTIONS, kl=kl)


MAKE: dict[str, Any] = {
    "loss": lambda: module_of(OPTIONS, optimizer=SGD, kl=KLPenalty("loss", "full", 0.5)),
    "reward": lambda: module_of(OPTIONS, optimizer=SGD, kl=KLPenalty("reward", "full", 0.5, **ADAPTIVE)),
    "adapter": adapted,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["loss", "adapter", "reward"])
def test_8x1_is_4x2_is_ddp_is_fsdp(tmp_path, name):
    """Fails when a KL is averaged over a micro-batch, or the reference's head is read when it is sharded."""
    make = MAKE[name]
    # Where the rewards of a group differ by the KL alone, their standard deviation divides rounding by next to nothing.
    tolerance = 2e-4 if name == "reward" else 5e-5
    whole = trajectory(make, tmp_path / "whole")
    kl = torch.tensor(whole["metrics"]["train/kl/token"])
    assert bool((kl > -1e-6).all())
    assert float(kl[-1]) > 1e-4
    cut = trajectory(make, tmp_path / "cut", accumulate_grad_batches=2)
    assert samples(tmp_path / "whole") == samples(tmp_path / "cut")
    assert_same(whole, cut, tolerance)
    runs: dict[str, dict[str, Any]] = {
        "ddp": {"strategy": "ddp", "accumulate_grad_batches": 2},
        "fsdp": {"strategy": FSDP2Strategy},
    }
    for run, options in runs.items():
        folder = tmp_path / run
        other = in_processes(2, folder, trajectory, make, folder, devices=2, **options)
        assert samples(tmp_path / "whole") == samples(folder)
        assert_same(whole, other, tolerance)
