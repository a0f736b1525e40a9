"""Roles of the models in a run: the policy that is trained, the reference it is compared with, and earlier policies.

:mod:`rlhf_lightning.models.roles.builder` gives every role its model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lightning.models.adapters.start import AdapterStart, measured_start
from rlhf_lightning.models.roles.earlier import AdapterCopy
from rlhf_lightning.models.roles.reference import FrozenCopy, Reference
from rlhf_lightning.models.sharding import shard_actor
from rlhf_lightning.models.shares import reading_shares

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedTokenizerBase


@dataclass
class Models:
    """The models of a run, by role."""

    policy: Any  #: what is trained: an Actor, or another Backbone that a method asks for
    reference: Reference | None
    tokenizer: PreTrainedTokenizerBase
    start: AdapterStart | None = None  #: what the policy's adapter does before training; None: there is none
    #: by role, see :class:`~rlhf_lightning.models.roles.earlier.Earlier`
    earlier: dict[str, Any] = field(default_factory=dict)


#: What Lightning's names of precisions compute in under autocast.
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def sharded(build: Callable[[], Models], mesh: DeviceMesh, trainer: Any) -> Models:
    """Build models of which every process loads its share, where their files allow that, and shard them.

    Args:
        build: makes them.
        mesh: with a dimension ``data_parallel``, which is sharded over where the strategy has no mesh of groups.
        trainer: of Lightning: its precision counts, and whether its strategy keeps shards in host memory.
    """
    with reading_shares():
        models = build()
    offload = getattr(trainer.strategy, "cpu_offload", False)
    data_mesh = getattr(trainer.strategy, "data_mesh", None) or mesh["data_parallel"]
    shard(models, data_mesh, cpu_offload=offload, compute=AUTOCAST.get(str(trainer.precision)))
    return models


def shard(models: Models, mesh: DeviceMesh, *, cpu_offload: bool = False, compute: torch.dtype | None = None) -> None:
    """Shard the policy and, separately, every frozen copy with FSDP2, in place.

    Args:
        models: as built, with the same weights in every process.
        mesh: see :func:`~rlhf_lightning.models.sharding.shard_actor`.
        cpu_offload: keep shards and optimiser state in host memory.
        compute: dtype of autocast, which weights are gathered in; None: that of the weights.

    Raises:
        ValueError: some weights are quantised.
    """
    shard_actor(models.policy, mesh, cpu_offload=cpu_offload, compute=compute)
    for copy in (models.reference, *models.earlier.values()):
        copy = getattr(copy, "before", None) or copy
        if isinstance(copy, FrozenCopy):
            shard_actor(copy.actor, mesh, cpu_offload=cpu_offload, compute=compute)
        elif isinstance(copy, AdapterCopy):
            copy.shard()
    if models.start is not None and not models.start.base:
        models.start = measured_start(models.policy, models.start)
