"""Models: loading, adapters, roles, sharding, generation, export. Names are loaded when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor as Actor
    from rlhf_lightning.models.adapters.lora import Lora as Lora
    from rlhf_lightning.models.backbone import Backbone as Backbone
    from rlhf_lightning.models.critics.critic import ActorCritic as ActorCritic
    from rlhf_lightning.models.critics.value_actor import ValueActor as ValueActor
    from rlhf_lightning.models.decoding.generation import generate as generate
    from rlhf_lightning.models.fingerprint import reference_fingerprint as reference_fingerprint
    from rlhf_lightning.models.memory import ModelSummary as ModelSummary
    from rlhf_lightning.models.memory import describe as describe
    from rlhf_lightning.models.roles.builder import ModelBuilder as ModelBuilder
    from rlhf_lightning.models.roles.models import Models as Models
    from rlhf_lightning.models.roles.models import shard as shard
    from rlhf_lightning.models.roles.reference import AdapterDisabled as AdapterDisabled
    from rlhf_lightning.models.roles.reference import Cached as Cached
    from rlhf_lightning.models.roles.reference import FrozenCopy as FrozenCopy
    from rlhf_lightning.models.roles.reference import Reference as Reference
    from rlhf_lightning.models.roles.reference import ReferenceKind as ReferenceKind
    from rlhf_lightning.models.scorers.gated import GatedScorer as GatedScorer
    from rlhf_lightning.models.scorers.scorer import Scorer as Scorer
    from rlhf_lightning.models.sources import ModelSource as ModelSource
    from rlhf_lightning.models.sources import Pretrained as Pretrained
    from rlhf_lightning.models.sources import SmolLM2 as SmolLM2
    from rlhf_lightning.models.sources import TinyRandom as TinyRandom

_HOME = {
    "Actor": "actor",
    "ActorCritic": "critics.critic",
    "AdapterDisabled": "roles.reference",
    "Backbone": "backbone",
    "Cached": "roles.reference",
    "FrozenCopy": "roles.reference",
    "GatedScorer": "scorers.gated",
    "Lora": "adapters.lora",
    "ModelBuilder": "roles.builder",
    "ModelSource": "sources",
    "ModelSummary": "memory",
    "Models": "roles.models",
    "Pretrained": "sources",
    "Reference": "roles.reference",
    "ReferenceKind": "roles.reference",
    "Scorer": "scorers.scorer",
    "SmolLM2": "sources",
    "TinyRandom": "sources",
    "ValueActor": "critics.value_actor",
    "describe": "memory",
    "generate": "decoding.generation",
    "reference_fingerprint": "fingerprint",
    "shard": "roles.models",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
