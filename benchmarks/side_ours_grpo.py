"""This project's side of the GRPO comparison: the policy-gradient module on rollouts, under Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import lightning as L
import torch
from fixed_rows import advantages, responses, reward
from worker import CLIP, RATE, Clock

from rlhf_lightning.credit import grpo
from rlhf_lightning.data import AlignmentDataModule
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import KLPenalty, PolicyGradient
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import Pretrained
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.types import Example, PackedBatch, RolloutBatch, RolloutOptions, SampleGroup


def run(settings: dict[str, Any], prompts: list[list[int]], clock: Clock) -> list[float]:
    """Train over the prompts; return log-prob sums of fixed rows and their loss, before the first step."""
    module = _module(settings)
    module.configure_model()
    scores = _scores(module.to(settings["device"]), prompts[0], settings)
    bf16 = settings["precision"] == "bf16"
    engine = Timed(clock, dtype="bfloat16" if bf16 else None, max_new_tokens=settings["response_tokens"])
    data = AlignmentDataModule(
        [Example(prompt, [[]]) for prompt in prompts],
        kind="prompt",
        batch_size=settings["prompts"],
        loading={"shuffle": False},
    )
    trainer = L.Trainer(
        accelerator=settings["device"],
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if bf16 else "32-true",
        accumulate_grad_batches=settings["accumulate"],
        gradient_clip_val=CLIP,
        callbacks=[Steps(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, OnlineData(data, engine, Even(), module.rollout))
    return scores


def _module(settings: dict[str, Any]) -> Any:
    kl = KLPenalty("loss", estimator="k3", coef=settings["kl"]) if settings["kl"] else None
    return PolicyGradient(
        ModelBuilder(Pretrained(settings["model"]), reference="frozen" if kl else "none"),
        partial(ppo, eps_low=0.2, eps_high=0.2),
        partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0, fused=True),
        advantage=grpo,
        policy_loss={"aggregation": "seq_mean_token_mean"},
        kl=kl,
        rollout=RolloutOptions(group_size=settings["group"], ignore_eos=True),
    )


class Timed(TransformersEngine):
    """Counts the seconds of drawing."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(None, **options)
        self.clock = clock

    def sync(self, *args: Any) -> None:
        """Take the weights."""
        with self.clock.part("generate"):
            super().sync(*args)

    def generate(self, *args: Any, **options: Any) -> Any:
        """Draw."""
        with self.clock.part("generate"):
            return super().generate(*args, **options)


class Even:
    """Scores by the share of even ids."""

    name = "even"

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        """One score a response."""
        return [[reward(ids) for ids in group.responses] for group in groups]


class Steps(L.Callback):
    """A step lasts from the end of the one before: what the loader does belongs to it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, *_: Any) -> None:
        """Begin the first step."""
        self.clock.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: dict[str, Any], batch: Any, index: int) -> None:
        """End a step with its last micro-batch."""
        if (index + 1) % trainer.accumulate_grad_batches == 0:
            self.clock.stop(float(outputs["loss"]))


def _scores(module: Any, prompt: list[int], settings: dict[str, Any]) -> list[float]:
    rows = responses(prompt, settings["group"], settings["response_tokens"])
    packed = pack([Example(prompt, rows)]).to(settings["device"])
    layout = {declared.name: getattr(packed, declared.name) for declared in fields(PackedBatch)}
    given = torch.tensor(advantages(len(rows)), device=packed.ids.device)
    batch = RolloutBatch(**layout, advantage=given[packed.sequence])
    with torch.no_grad():
        log_probs = module.policy(packed).token
        if settings["kl"]:
            batch.reference_log_probs = log_probs
        loss = module(batch).loss
    return [*log_probs.new_zeros(len(rows)).index_add(0, packed.sequence, log_probs).tolist(), float(loss)]
