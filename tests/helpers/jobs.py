"""Training runs that can be killed, in a forked process, and what they leave behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from rlhf_lightning.callbacks import EMAWeights, LastCheckpoint, NonFiniteStop, ReferenceSync, StepSeed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.data.examples import Examples
from rlhf_lightning.data.loader import EpochLoader, ListLoader, evaluation_batches
from rlhf_lightning.data.plan import Batching
from rlhf_lightning.losses import bco_pair
from rlhf_lightning.schedules import cosine
from tests.helpers.training import Builder, examples, preference, supervised, trainer


class Data(L.LightningDataModule):
    """Real loaders over generated examples."""

    def __init__(self, groups: int = 20, batch_size: int = 4, responses: int = 2) -> None:
        super().__init__()
        self.examples = Examples.build(examples(groups, responses=responses))
        self.batching = Batching(batch_size=batch_size, seed=3)

    def train_dataloader(self) -> EpochLoader:
        return EpochLoader(
            self.examples,
            self.batching,
            accumulate=self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def val_dataloader(self) -> ListLoader:
        place = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return ListLoader(evaluation_batches(self.examples, self.batching, **place))


class KillAt(L.Callback):
    """Dies without a word once an optimiser step is done (and everything that belongs to it)."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def module_of(kind: str) -> L.LightningModule:
    """A method with dropout, and for pairs a loss with running statistics."""
    schedule = partial(cosine, warmup=0.2)
    if kind == "supervised":
        return supervised(builder=Builder("none", dropout=0.3), scheduler=schedule)
    return preference(
        partial(bco_pair, beta=0.5), Builder(dropout=0.3), scheduler=schedule, running_decay=None
    )


def fit(
    folder: Path, kind: str = "preference", kill_at: int | None = None, callbacks: tuple[L.Callback, ...] = (), **options: Any
) -> tuple[L.LightningModule, L.Trainer]:
    """Train in ``folder``; where that holds a checkpoint, go on from it."""
    own = [StepSeed(seed=7), NonFiniteStop(), EMAWeights(decay=0.9), LastCheckpoint(every_n_steps=2)]
    if kind == "preference":
        own.append(ReferenceSync(every_n_steps=3, alpha=0.6))
    if kill_at is not None:
        own.append(KillAt(kill_at))
    run = trainer(
        folder,
        [*own, *callbacks],
        **{"max_epochs": 3, "gradient_clip_val": 1.0, "plugins": [AtomicCheckpointIO()], "use_distributed_sampler": False}
        | options,
    )
    module = module_of(kind)
    last = folder / "checkpoints" / "last.ckpt"
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # nothing may hang on the global generator's start
    run.fit(module, datamodule=Data(responses=1 if kind == "supervised" else 2), ckpt_path=last if last.exists() else None)
    torch.save(torch.get_rng_state(), folder / "rng.pt")
    return module, run


def forked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Run a function in a process of its own and return its exit code (negative: the signal that ended it)."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args, kwargs=kwargs)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested containers differ, to the bit; folders and clocks aside."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{path}/{key}" for key in one.keys() ^ other.keys()]
        return found + [d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{path}/{i}")]
    return [] if one == other else [f"{path}: {one} != {other}"]


def final_state(folder: Path) -> dict[str, Any]:
    """Everything that the last checkpoint of a run holds, and the state of the generator after it."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {**checkpoint, "rng": torch.load(folder / "rng.pt")}
