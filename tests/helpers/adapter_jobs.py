"""Training runs against the start of an adapter, which can be killed."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.callbacks import LastCheckpoint, StepSeed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.files import recovered
from rlhf_lightning.losses import dpo
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from tests.helpers.jobs import KillAt, data
from tests.helpers.training import preference, trainer

SMALL = TinyRandom(hidden_size=16, intermediate_size=32)


def fit_adapter(folder: Path, adapter: Lora, kill_at: int | None = None, **options: Any) -> None:
    """DPO against the start of an adapter; where the folder holds a checkpoint, resume from it."""
    callbacks = [StepSeed(seed=7), LastCheckpoint(every_n_steps=2), *([] if kill_at is None else [KillAt(kill_at)])]
    if "strategy" in options:
        options = {**options, "strategy": options["strategy"](), "use_distributed_sampler": False}
    run = trainer(folder, callbacks, **{"max_epochs": 2, "plugins": [AtomicCheckpointIO()]} | options)
    module = preference(partial(dpo, beta=0.5), ModelBuilder(SMALL, adapter, "auto"))
    last = recovered(folder / "checkpoints" / "last.ckpt")
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # nothing may hang on the global generator's start
    run.fit(module, datamodule=data("preference"), ckpt_path=last if last.exists() else None)
    assert module.reference.kind == "frozen"
    if run.is_global_zero:
        torch.save(torch.get_rng_state(), folder / "rng.pt")


def save_adapter(folder: Path, seed: int) -> Lora:
    """Write an adapter that does not equal its base, and give the settings that start from it."""
    Lora(r=2, seed=seed, init=False).apply(SMALL.load()).save_pretrained(folder)
    return Lora(path=str(folder))
