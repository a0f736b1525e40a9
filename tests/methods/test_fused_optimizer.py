"""A fused optimiser under mixed precision, with clipping: the fastest step on a CPU, and what Lightning refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from rlhf_lightning.losses import dpo
from rlhf_lightning.methods import Preference
from tests.helpers.training import Builder, loader, trainer


def trained(tmp_path, *, fused: bool, clip: float | None) -> torch.Tensor:
    module = Preference(Builder(), partial(dpo, beta=0.1), partial(torch.optim.AdamW, lr=0.01, fused=fused))
    run = trainer(tmp_path, max_steps=3, precision="bf16-mixed", gradient_clip_val=clip)
    run.fit(module, loader(steps=3))
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


def test_fused_step_clips_as_the_plain_one_does(tmp_path):
    fused = trained(tmp_path, fused=True, clip=1e-3)
    torch.testing.assert_close(fused, trained(tmp_path, fused=False, clip=1e-3), atol=1e-6, rtol=1e-4)


def test_clipping_is_not_skipped(tmp_path):
    module = Preference(Builder(), partial(dpo, beta=0.1), partial(torch.optim.SGD, lr=1.0, fused=True))
    before = torch.cat([p.detach().flatten() for p in Builder()().policy.parameters()])
    trainer(tmp_path, max_steps=1, precision="bf16-mixed", gradient_clip_val=1e-3).fit(module, loader(steps=1))
    after = torch.cat([p.detach().flatten() for p in module.policy.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)
