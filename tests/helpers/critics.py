"""PPO on a random model of a few thousand weights, with everything that has a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from rlhf_lightning.credit import gae, lagrangian
from rlhf_lightning.losses import ppo
from rlhf_lightning.methods import PPO, KLPenalty, Multiplier, RewardShaping
from rlhf_lightning.models.adapters.lora import Lora
from rlhf_lightning.models.critics.critic import ActorCritic
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.schedules import cosine
from rlhf_lightning.types import RolloutOptions, SampleGroup
from tests.helpers.online import OPTIONS, LowBytes, merged

SOURCE = TinyRandom(hidden_size=16, intermediate_size=32)


class Costly(LowBytes):
    """Low bytes are rewarded, and even bytes cost."""

    name = "costly"
    costs = frozenset({"cost"})

    def terms(self, groups: Sequence[SampleGroup]) -> dict[str, list[list[float | None]]]:
        costs: list[list[float | None]] = [
            [1 - 2 * sum(token % 2 for token in sample.ids) / len(sample.ids) for sample in group.samples]
            for group in groups
        ]
        return {"reward": LowBytes.__call__(self, groups), "cost": costs}

    def combine(self, terms: Mapping[str, list[list[float | None]]]) -> list[list[float | None]]:
        return terms["reward"]

    def __call__(self, groups: Sequence[SampleGroup]) -> list[list[float | None]]:
        return self.combine(self.terms(groups))


def builder(kind: str, *, lora: bool = False) -> ModelBuilder:
    """The adapter kind needs an adapter; its reference is then the base."""
    if lora or kind == "adapter":
        return ModelBuilder(SOURCE, Lora(r=4, seed=0), "adapter_off")
    return ModelBuilder(SOURCE, None, "frozen")


def ppo_of(
    kind: str = "separate",
    options: RolloutOptions = OPTIONS,
    *,
    cost: bool = False,
    critic: Mapping[str, Any] | None = None,
    models: Any = None,
    lora: bool = False,
    loss_options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> PPO:
    """An adaptive KL penalty, running scales, whitened rewards and advantages; with a cost also its multiplier."""
    settings: dict[str, Any] = {
        "advantage": lagrangian if cost else partial(gae, whiten_rewards=True),
        "critic": partial(ActorCritic, kind=kind, **{"layers": 1, "head": "rsqrt"} | dict(critic or {})),
        "kl": KLPenalty("reward", "k1", 0.1, controller="adaptive", target=0.05, horizon=100),
        "credit": {
            "multiplier": Multiplier(threshold=-0.1, window=16) if cost else None,
            "shaping": RewardShaping(scale="running", clip=5.0),
        },
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "scheduler": partial(cosine, warmup=0.2),
        "value_loss": {"critic_lr": 2e-2, "coef": 0.5},
    }
    loss = partial(ppo, **loss_options) if loss_options else ppo
    return PPO(models or builder(kind, lora=lora), loss, rollout=options, **merged(settings, changes))
