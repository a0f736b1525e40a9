"""Small on-policy runs: a random model, prompts of a few bytes, a reward that a function computes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from rlhf_lightning.callbacks import LastCheckpoint, NonFiniteStop, StepSeed
from rlhf_lightning.checkpointing import AtomicCheckpointIO
from rlhf_lightning.credit import grpo
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.files import recovered
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import KLPenalty, PolicyGradient
from rlhf_lightning.methods.shaping import RewardShaping
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import TextReward
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.schedules import cosine
from rlhf_lightning.types import Example, RolloutOptions, Sample, SampleGroup, Sampling
from tests.helpers.jobs import KillAt, Memory
from tests.helpers.training import trainer

#: Two passes of two steps over every rollout: four steps a rollout.
OPTIONS = RolloutOptions(group_size=3, minibatches=2, inner_epochs=2)


class LowBytes:
    """Share of a response's tokens below 100, less one for a response that was cut off; text never enters."""

    name = "low_bytes"

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        return [[self.score(sample) for sample in group.samples] for group in groups]

    def score(self, sample: Sample) -> float | None:
        return sum(token < 100 for token in sample.ids) / len(sample.ids) - (sample.finish == "length")


class Unsure(LowBytes):
    """Scores no response that begins with an odd token."""

    name = "unsure"

    def score(self, sample: Sample) -> float | None:
        return None if sample.ids[0] % 2 else super().score(sample)


def letters(prompt: str, response: str) -> float:
    """Share of letters, for a reward that a yaml names."""
    return sum(letter.isalpha() for letter in response) / max(len(response), 1)


class LetterSteps(TextReward):
    """Share of letters, also given at every third token and at the last one, as if steps ended there."""

    def __init__(self, tokenizer: Any = None) -> None:
        super().__init__(tokenizer, "letters")

    def score(self, prompt: str, response: str, columns: Mapping[str, Any]) -> float:
        return letters(prompt, response)

    def step_reward(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]]:
        return [[self.steps(ids) for ids in group.responses] for group in groups]

    def steps(self, ids: list[int]) -> list[float]:
        ends = [at % 3 == 2 or at == len(ids) - 1 for at in range(len(ids))]
        return [token / 256 if end else float("nan") for token, end in zip(ids, ends, strict=True)]


class LettersAndCost(LetterSteps):
    """A reward, and a cost that is no part of it."""

    costs = frozenset({"cost"})

    def terms(self, groups: Sequence[SampleGroup]) -> dict[str, Any]:
        scores = self(groups)
        return {"letters": scores, "cost": [[0.5 - (score or 0.0) for score in row] for row in scores]}

    def combine(self, terms: dict[str, Any]) -> Any:
        return terms["letters"]


class Engine(TransformersEngine):
    """Notes how many prompts each of its calls for training has, and dies in the n-th of them."""

    def __init__(self, folder: Path | None = None, kill_at: int | None = None, **options: Any) -> None:
        super().__init__(**{"max_new_tokens": 6} | options)
        self.folder, self.kill_at, self.calls = folder, kill_at, 0

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        drawn = super().generate(prompts, sampling, n=n, seeds=seeds)
        if n == 1:  # validation
            return drawn
        self.calls += 1
        if self.calls == self.kill_at:
            time.sleep(1)  # until the other process is here too
            os.kill(os.getpid(), signal.SIGKILL)
        if self.folder is not None:
            with (self.folder / "drawn.txt").open("a") as file:
                file.write(f"{len(prompts)}\n")
        return drawn


def prompts(count: int, seed: int = 0) -> list[Example]:
    """Prompts of one to five tokens, with a column."""
    draw = np.random.default_rng(seed)
    return [
        Example(
            draw.integers(1, 255, int(draw.integers(1, 6))).tolist(),
            [[]],
            row=f"prompts.jsonl:{i}",
            columns=f'{{"number": {i}}}',
        )
        for i in range(count)
    ]


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others above them; options of a value object, a mapping in both, one by one."""
    both = {name for name in settings.keys() & changes.keys() if isinstance(settings[name], Mapping)}
    return {**settings, **changes} | {name: {**settings[name], **changes[name]} for name in both}


def builder(**options: Any) -> ModelBuilder:
    return ModelBuilder(TinyRandom(hidden_size=16, intermediate_size=32, **options), None, "frozen")


def module_of(options: RolloutOptions = OPTIONS, **changes: Any) -> PolicyGradient:
    """Everything that has a state: an adaptive KL penalty in the reward, running scales of the rewards."""
    settings: dict[str, Any] = {
        "advantage": grpo,
        "kl": KLPenalty("reward", "k1", 0.1, controller="adaptive", target=0.05, horizon=100),
        "credit": {"shaping": RewardShaping(scale="running", clip=5.0)},
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "scheduler": partial(cosine, warmup=0.2),
    }
    return PolicyGradient(builder(), ppo, rollout=options, **merged(settings, changes))


def online(
    module: PolicyGradient, folder: Path | None, engine: Any = None, reward: Any = None, count: int = 24, **options: Any
) -> OnlineData:
    """Rollouts of eight prompts each, three of them an epoch."""
    source = AlignmentDataModule(
        prompts(count), kind="prompt", validation=prompts(5, seed=1), **{"batch_size": 4, "seed": 3} | options
    )
    return OnlineData(source, engine or Engine(), reward or LowBytes(), module.rollout, folder)


def fit(
    folder: Path,
    kill_at: int | None = None,
    kill_call: int | None = None,
    make: Any = module_of,
    reward: Any = None,
    dtype: Any = None,
    ptx: Any = None,
    callbacks: Sequence[L.Callback] = (),
    data: Any = online,
    **options: Any,
) -> L.Trainer:
    """Train in ``folder``, saving every third step; where it holds a checkpoint, resume from that.

    Args:
        folder: of the run.
        kill_at: die before this step's first batch, its rollout being drawn.
        kill_call: die in this call of the engine, from 1.
        make: the module.
        reward: what scores.
        dtype: of the copy of the weights that is sampled from; None: the weights themselves are.
        ptx: what makes the data that is mixed in.
        callbacks: beside those that every run has.
        data: makes the data of a module.
        **options: of the trainer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    all_callbacks: list[L.Callback] = [StepSeed(seed=7), NonFiniteStop(), LastCheckpoint(every_n_steps=3), *callbacks]
    if kill_at is not None:
        all_callbacks.append(KillAt(kill_at))
    if callable(options.get("strategy")):
        options["strategy"] = options["strategy"]()
    settings = {"gradient_clip_val": 1.0, "plugins": [AtomicCheckpointIO()], "use_distributed_sampler": False}
    settings |= {"max_epochs": 2, "val_check_interval": 4}
    run = trainer(folder, all_callbacks, **settings | options)
    module = make()
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # nothing may hang on the global generator's start
    source = data(module, folder / "rollouts", Engine(folder, kill_call, dtype=dtype), reward, ptx=ptx)
    last = recovered(folder / "checkpoints" / "last.ckpt")
    run.fit(module, datamodule=source, ckpt_path=last if last.exists() else None)
    if run.is_global_zero:
        torch.save(torch.get_rng_state(), folder / "rng.pt")
    return run


def trajectory(
    make: Any,
    folder: Path,
    reward: Any = None,
    count: int = 24,
    callbacks: Sequence[L.Callback] = (),
    dtype: Any = None,
    ptx: Any = None,
    data: Any = online,
    **options: Any,
) -> dict[str, Any]:
    """Train for an epoch; every logged metric by name, the final weights, and what the rollouts' files hold."""
    folder.mkdir(parents=True, exist_ok=True)
    logger, module = Memory(), make()
    if callable(options.get("strategy")):
        options["strategy"] = options["strategy"]()
    all_callbacks = [NonFiniteStop(), *callbacks]
    run = trainer(folder, all_callbacks, logger=logger, **{"use_distributed_sampler": False} | options)
    source = data(module, folder / "rollouts", Engine(dtype=dtype), reward, count, ptx=ptx)
    run.fit(module, datamodule=source)
    names = {name for row in logger.rows for name in row}
    weights = get_model_state_dict(module.policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    result = {"metrics": {name: logger.series(name) for name in names}, "weights": weights}
    if run.is_global_zero:
        torch.save(result, folder / "trajectory.pt")
    return result


def rollouts(folder: Path) -> list[list[dict[str, Any]]]:
    """Rows of a run's files of samples, file by file."""
    files = sorted((folder / "rollouts").glob("*.jsonl"))
    return [[json.loads(line) for line in file.open()] for file in files]
