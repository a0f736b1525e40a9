"""Models for the roles that a reward names, while the samples of a round are scored."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from rlhf_lightning.models.roles.earlier import computing
from rlhf_lightning.models.roles.reference import placed
from rlhf_lightning.rewards.base import RoleReward
from rlhf_lightning.types import Trained


def assign_roles(reward: Any, module: Trained | None) -> None:
    """Give a reward the models that it names; roles without a model are left to the reward to refuse.

    Samples are scored before the first step of their round, when the policy that is trained is the one that the round
    starts with: ``policy`` and ``round_start`` are both that policy, which no copy is made of.

    Args:
        reward: the reward, or None.
        module: the module that is trained, with its models; None: there is none.
    """
    if module is None or not isinstance(reward, RoleReward):
        return
    playing = {"policy": module.policy, "round_start": module.policy, **module.earlier}
    for role in sorted(reward.roles & playing.keys()):
        reward.assign(role, functools.partial(_ready, playing[role], module), module.device)


def _ready(model: Any, module: Trained) -> AbstractContextManager[Any]:
    return computing(placed(model, module.policy), module.policy)
