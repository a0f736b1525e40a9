"""GRPO in a training loop of your own: the rollouts, rewards and steps of the Trainer under lightning.Fabric.

python examples/fabric_grpo.py            # one process, in the tiny world: the mean reward rises within a minute
fabric run --devices=2 --accelerator=cpu examples/fabric_grpo.py
"""

import os
from functools import partial

import lightning as L
import torch

from rlhf_lightning.credit import grpo
from rlhf_lightning.data import AlignmentDataModule, DataSpec, ProcessShare
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import KLPenalty, PolicyGradient
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.types import RolloutOptions
from rlhf_lightning.world import GoldScorer, TinySource, TinyWorld

ACCUMULATE = 2
OPTIONS = RolloutOptions(group_size=8, minibatches=2)


def main(fabric: L.Fabric, steps: int = 40, prompts: int = 16) -> list[float]:
    """Train for some optimiser steps; the mean reward of each rollout."""
    fabric.seed_everything(0, verbose=False)
    builder = ModelBuilder(TinyWorld())
    module = PolicyGradient(
        builder,
        ppo,
        partial(torch.optim.AdamW, lr=5e-4),
        advantage=grpo,
        rollout=OPTIONS,
        kl=KLPenalty("loss", "k3", 0.04),
    )
    module.configure_model()
    share = ProcessShare(ACCUMULATE, fabric.global_rank, fabric.world_size)
    spec = DataSpec(template="tokenizer")
    source = AlignmentDataModule(
        TinySource(size=512, kind="prompt"),
        builder.tokenizer(),
        kind="prompt",
        batch_size=prompts,
        spec=spec,
        process_share=share,
    )
    engine = TransformersEngine(max_new_tokens=24)
    data = OnlineData(source, engine, GoldScorer(builder.tokenizer()), OPTIONS)
    data.setup()
    model, optimizer = fabric.setup(module, module.configure_optimizers())
    data.attach(module, fabric.autocast)
    loader, taken = data.train_dataloader(), 0
    rewards: list[float] = []
    while taken < steps:  # a pass of the loader is an epoch of prompts
        for number, batch in enumerate(loader, start=1):
            last = number % ACCUMULATE == 0
            with fabric.no_backward_sync(model, enabled=not last):
                loss = model(batch.to(fabric.device)).loss
                fabric.backward(loss / ACCUMULATE)
            if not last:
                continue
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            taken += 1
            if batch.rollout == len(rewards):  # the first step on a new rollout
                rewards.append(data.metrics["train/reward/mean"])
                fabric.print(f"rollout {batch.rollout}: mean reward {rewards[-1]:.3f}")
            if taken == steps:
                break
    return rewards


if __name__ == "__main__":
    fabric = L.Fabric()
    if "LT_CLI_USED" not in os.environ:  # `fabric run` has started the processes, and connects them
        fabric.launch()
    main(fabric)
