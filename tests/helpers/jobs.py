"""Training runs that can be killed, in a forked process, and what they leave behind."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from rlhf_lightning.callbacks import EMAWeights, LastCheckpoint, NonFiniteStop, ReferenceSync, StepSeed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.files import recovered
from rlhf_lightning.losses import bco_pair
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.schedules import cosine
from tests.helpers.kinds import EXAMPLES
from tests.helpers.training import Builder, examples, preference, supervised, trainer


def data(kind: str, groups: int = 20, batch_size: int = 4, mismatched: bool = False) -> AlignmentDataModule:
    """Generated examples behind the real data module; validation is over the same ones."""
    rows = examples(groups) if kind == "preference" else EXAMPLES[kind](groups)
    return AlignmentDataModule(
        rows,
        kind=kind,
        validation=rows,
        batch_size=batch_size,
        loading={"eval_batch_size": 4},
        seed=3,
        mismatched=mismatched,
    )


class KillAt(L.Callback):
    """Dies without a word once an optimiser step is done (and everything that belongs to it)."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            if trainer.world_size > 1:
                time.sleep(1)  # until the other process is here too: it would die of a broken connection instead
            os.kill(os.getpid(), signal.SIGKILL)


def module_of(kind: str, schedule: Callable[..., Any] | None = None) -> L.LightningModule:
    """A method with dropout, and for pairs a loss with running statistics."""
    schedule = schedule or partial(cosine, warmup=0.2)
    if kind.startswith("tiny"):
        lora = {
            "tiny": None,
            "tiny_lora": Lora(r=2, alpha=16, seed=5),
            "tiny_lora_dropout": Lora(r=2, alpha=16, dropout=0.3, seed=5),
        }[kind]
        builder = ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32), lora, "frozen")
        return preference(partial(bco_pair, beta=0.5), builder, scheduler=schedule)
    if kind == "supervised":
        return supervised(builder=Builder("none", dropout=0.3), scheduler=schedule)
    return preference(partial(bco_pair, beta=0.5), Builder(dropout=0.3), scheduler=schedule, running_decay=None)


def fit(
    folder: Path,
    kind: str = "preference",
    kill_at: int | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    rows: Mapping[str, int] | None = None,
    schedule: Callable[..., Any] | None = None,
    last: bool = True,
    **options: Any,
) -> tuple[L.LightningModule, L.Trainer]:
    """Train in ``folder``; where that holds a checkpoint, resume from it.

    ``rows`` are options of ``data``; ``last`` says whether ``last.ckpt`` is written at every second step.
    """
    callbacks_of_run: list[L.Callback] = [StepSeed(seed=7), NonFiniteStop(), EMAWeights(decay=0.9)]
    callbacks_of_run += [LastCheckpoint(every_n_steps=2)] if last else []
    if kind != "supervised":
        callbacks_of_run.append(ReferenceSync(every_n_steps=3, alpha=0.6))
    if kill_at is not None:
        callbacks_of_run.append(KillAt(kill_at))
    if callable(options.get("strategy")):
        options["strategy"] = options["strategy"]()
    run = trainer(
        folder,
        [*callbacks_of_run, *callbacks],
        **{
            "max_epochs": 3,
            "gradient_clip_val": 1.0,
            "plugins": [AtomicCheckpointIO()],
            "use_distributed_sampler": False,
        }
        | options,
    )
    module = module_of(kind, schedule)
    last = recovered(folder / "checkpoints" / "last.ckpt")
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # nothing may hang on the global generator's start
    run.fit(module, datamodule=data(module.kind, **(rows or {})), ckpt_path=last if last.exists() else None)
    if run.is_global_zero:
        torch.save(torch.get_rng_state(), folder / "rng.pt")
    return module, run


def forked(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Run a function in a process of its own and return its exit code (negative: the signal that ended it)."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args, kwargs=kwargs)
    process.start()
    process.join(60)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


#: Metrics that a clock measures.
CLOCK = re.compile(r"train/(time|throughput|memory)/(?!padding)")


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths at which two nested containers differ, to the bit; folders and clocks aside."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({key: value for key, value in d.items() if not CLOCK.match(str(key))} for d in (one, other))
        unshared = [f"{path}/{key}" for key in one.keys() ^ other.keys()]
        return unshared + [
            d for key in one.keys() & other.keys() for d in differences(one[key], other[key], f"{path}/{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{path}/{i}")]
    return [] if one == other else [f"{path}: {one} != {other}"]


def final_state(folder: Path) -> dict[str, Any]:
    """Everything that the last checkpoint of a run holds, and the state of the generator after it."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {**checkpoint, "rng": torch.load(folder / "rng.pt")}


class Memory(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    name = "memory"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append({**metrics, "step": step})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def series(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def trajectory(
    module: Callable[[], L.LightningModule],
    folder: Path,
    callbacks: tuple[L.Callback, ...] = (),
    before: Callable[[Any], None] | None = None,
    groups: int = 22,
    **options: Any,
) -> dict[str, Any]:
    """Train for two epochs and return every logged metric by name, and the final weights, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    logger, built = Memory(), module()
    if callable(options.get("strategy")):
        options["strategy"] = options["strategy"]()
    run = trainer(folder, callbacks, logger=logger, **{"max_epochs": 2, "use_distributed_sampler": False} | options)
    # By default the last step of an epoch has 6 groups, which four micro-batches cannot share evenly.
    source = data(built.kind, groups=groups, batch_size=8, mismatched="kl" in built.needs)
    if before is not None:
        source.setup("fit")
        before(SimpleNamespace(trainer=run, module=built, data=source))
    run.fit(built, datamodule=source)
    names = {name for row in logger.rows for name in row}
    weights = get_model_state_dict(built.policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    result = {"metrics": {name: logger.series(name) for name in names}, "weights": weights}
    if built.global_rank == 0:
        torch.save(result, folder / "trajectory.pt")
    return result


def in_processes(count: int, folder: Path, function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Run a function in forked processes that see each other as the ranks of one job; what rank 0 saved."""
    assert ranks(count, function, *args, **kwargs) == [0] * count
    return torch.load(folder / "trajectory.pt")


def ranks(count: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[int | None]:
    """Exit codes of forked processes that see each other as the ranks of one job; None of one that hangs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_rank, args=(r, count, port, function, args, kwargs)) for r in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # where one hangs, this process would wait for it at its own end
    return codes


def _rank(rank: int, count: int, port: int, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        NODE_RANK="0",
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    function(*args, **kwargs)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
