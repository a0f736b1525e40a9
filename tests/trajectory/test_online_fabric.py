"""The Fabric example of GRPO takes the Trainer's steps on the Trainer's rollouts, in one process and in two."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from rlhf_lightning.credit import grpo
from rlhf_lightning.data import AlignmentDataModule, DataSpec
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import KLPenalty, PolicyGradient
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.rollout import TransformersEngine
from rlhf_lightning.rounds import OnlineData
from rlhf_lightning.world import GoldScorer, TinySource, TinyWorld
from tests.helpers.jobs import Memory, in_processes
from tests.helpers.training import trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "fabric_grpo.py"
STEPS, PROMPTS = 6, 8


def example():
    spec = importlib.util.spec_from_file_location("fabric_grpo", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fabric_rewards(folder: Path | None = None, devices: int = 1) -> list[float]:
    fabric = L.Fabric(accelerator="cpu", devices=devices)
    fabric.launch()
    rewards = example().main(fabric, STEPS, PROMPTS)
    if folder is not None and fabric.global_rank == 0:
        torch.save({"rewards": rewards}, folder / "trajectory.pt")
    return rewards


def trainer_rewards(folder: Path) -> list[float]:
    builder, options, kl = ModelBuilder(TinyWorld()), example().OPTIONS, KLPenalty("loss", "k3", 0.04)
    optimizer = partial(torch.optim.AdamW, lr=5e-4)
    module = PolicyGradient(builder, ppo, optimizer, advantage=grpo, rollout=options, kl=kl)
    spec, source = DataSpec(template="tokenizer"), TinySource(size=512, kind="prompt")
    prompts = AlignmentDataModule(source, builder.tokenizer(), kind="prompt", batch_size=PROMPTS, spec=spec)
    data = OnlineData(prompts, TransformersEngine(max_new_tokens=24), GoldScorer(builder.tokenizer()), options)
    logger = Memory()
    limits = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "max_steps": STEPS}
    trainer(folder, logger=logger, **limits).fit(module, datamodule=data)
    return logger.series("train/reward/mean")


def test_fabric_is_trainer(tmp_path):
    """Three rollouts of two steps: the samples of the later ones say whether the steps before were the same."""
    expected = trainer_rewards(tmp_path)
    assert len(set(expected)) == 3
    assert fabric_rewards() == pytest.approx(expected, abs=1e-6)
    parallel = in_processes(2, tmp_path, fabric_rewards, tmp_path, 2)["rewards"]
    assert parallel == pytest.approx(expected, abs=1e-6)
