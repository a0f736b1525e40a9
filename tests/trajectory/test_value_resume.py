"""A run with value heads that is stopped and resumed ends with the bits of the run that was not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from rlhf_lightning.callbacks import LastCheckpoint, StepSeed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.losses import ilql
from rlhf_lightning.methods import ValueBased
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.hidden_rows import ranked
from tests.helpers.jobs import differences
from tests.helpers.training import trainer


def fit(folder: Path, max_steps: int, every: int) -> dict[str, torch.Tensor]:
    """Train up to a step, from the folder's checkpoint where there is one; what the last checkpoint holds."""
    rows = ranked(12)
    data = AlignmentDataModule(rows, kind="ranked", validation=rows[:4], batch_size=4, seed=3)
    builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), None, "none")
    module = ValueBased(builder, ilql, partial(torch.optim.AdamW, lr=1e-2), target_rate=0.3, target_every=every)
    run = trainer(
        folder,
        [StepSeed(seed=7), LastCheckpoint(every_n_steps=2)],
        max_epochs=4,
        max_steps=max_steps,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
    )
    last = folder / "checkpoints" / "last.ckpt"
    run.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    return torch.load(last, weights_only=True)


@pytest.mark.parametrize("every", [2, 3])  # copies move at the step of a checkpoint, and between two of them
def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path, every: int) -> None:
    """Weights, copies of the Q heads, the count of steps that times them, and the moments of the returns."""
    whole = fit(tmp_path / "whole", 10, every)
    fit(tmp_path / "cut", 4, every)
    resumed = fit(tmp_path / "cut", 10, every)
    assert differences(whole["state_dict"], resumed["state_dict"]) == []
    assert differences(whole["optimizer_states"], resumed["optimizer_states"]) == []
    state = whole["state_dict"]
    assert state["steps"] == 10
    assert state["returns.count"] > 0
    pairs = [(key, key.replace("target_heads", "q_heads")) for key in state if "target_heads" in key]
    assert len(pairs) == 8
    assert any(not torch.equal(state[copy], state[trained]) for copy, trained in pairs)
    start = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), None, "none")(ValueBased.actor).policy
    fresh = dict(start.target_heads.named_buffers())
    moved = [not torch.equal(state[f"policy.target_heads.{name}"], fresh[name]) for name in fresh]
    assert all(moved), "the copies never moved"
