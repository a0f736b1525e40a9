"""Write what TRL's RewardTrainer computes on given rewards, as the fixture of tests/losses/test_reward.py.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16
    /tmp/trl/bin/python benchmarks/trl_reward_values.py tests/losses/trl_reward_losses.json

The real ``RewardTrainer.compute_loss`` runs, on a trainer object that holds the settings and a model that returns the
given rewards; nothing of TRL's arithmetic is repeated here.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import RewardTrainer

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"margin": False, "center_rewards_coefficient": None},
    "margin": {"margin": True, "center_rewards_coefficient": None},
    "centered": {"margin": False, "center_rewards_coefficient": 0.01},
    "centered_margin": {"margin": True, "center_rewards_coefficient": 0.1},
}


def compute(rewards: list[list[float]], margin: list[float], setting: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradient and metrics of one setting."""
    leaf = torch.tensor(rewards, requires_grad=True)
    inputs: dict[str, Any] = {"attention_mask": torch.ones(2 * len(rewards), 1)}
    if setting["margin"]:
        inputs["margin"] = torch.tensor(margin)

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=leaf.T.reshape(-1, 1))  # all chosen responses, then all rejected ones

    def same(values: Tensor) -> Tensor:
        return values

    trainer: Any = object.__new__(RewardTrainer)
    trainer.args = SimpleNamespace(center_rewards_coefficient=setting["center_rewards_coefficient"])
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = SimpleNamespace(gather_for_metrics=same, gather=same)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    metrics = trainer._metrics["train"]
    return setting | {
        "loss": loss.item(),
        "gradient": leaf.grad.tolist(),
        "accuracy": metrics["accuracy"][0],
        "margin_metric": metrics["margin"][0],
    }


def main(path: Path) -> None:
    """Compute every setting and write the file."""
    draw = random.Random(0)
    rewards = [[round(draw.uniform(-3, 3), 3) for _ in range(2)] for _ in range(7)]
    margin = [round(draw.uniform(0, 2), 3) for _ in rewards]
    settings = {name: compute(rewards, margin, setting) for name, setting in SETTINGS.items()}
    fixture = {"trl": trl.__version__, "rewards": rewards, "margin": margin, "settings": settings}
    path.write_text(json.dumps(fixture, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
