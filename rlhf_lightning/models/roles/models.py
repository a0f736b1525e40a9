"""Roles of the models in a run: the policy that is trained, the reference it is compared with, and earlier policies.

:mod:`rlhf_lightning.models.roles.builder` gives every role its model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lightning.models.adapters.start import AdapterStart
from rlhf_lightning.models.roles.earlier import AdapterCopy
from rlhf_lightning.models.roles.reference import FrozenCopy, Reference
from rlhf_lightning.models.sharding import shard_actor

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


def shard(models: Models, mesh: DeviceMesh, *, cpu_offload: bool = False, compute: torch.dtype | None = None) -> None:
    """Shard the policy and, separately, every frozen copy with FSDP2, in place.

    Args:
        models: as built, with the same weights in every process.
        mesh: the data-parallel processes, one dimension.
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
