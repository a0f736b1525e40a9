"""FSDP2 on an actor: what is sharded, how it is gathered, and how frozen weights come along.

The root of the sharding is the :class:`~rlhf_lightning.models.actor.Actor`, since everything is computed through its
``forward``; each decoder layer is a group of its own, and what is left (embeddings, final norm, head) belongs to the
root group, where tied embeddings stay tied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from rlhf_lightning.models.adapters.lora import is_quantized
from rlhf_lightning.models.blocks import decoder_layers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_actor(
    actor: nn.Module,
    mesh: DeviceMesh,
    *,
    cpu_offload: bool = False,
    mixed_precision: MixedPrecisionPolicy | None = None,
) -> None:
    """Shard an actor in place over a one-dimensional mesh; does nothing when it is sharded already.

    Args:
        actor: every process must hold the same weights.
        mesh: the data-parallel processes.
        cpu_offload: keep shards, gradients and optimiser state in host memory.
        mixed_precision: dtypes to compute and to reduce in; None: those of the weights.

    Raises:
        ValueError: some weights are quantised.
    """
    if isinstance(actor, FSDPModule):
        return
    if is_quantized(actor):
        raise ValueError(
            "quantised weights cannot be sharded: with strategy=fsdp leave adapter.quantize null, or use strategy=ddp"
        )
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": mixed_precision or MixedPrecisionPolicy(),
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
    }
    for layer in decoder_layers(actor):
        fully_shard(layer, **options)
    fully_shard(actor, **options)


def reshard(module: nn.Module) -> None:
    """Free gathered weights, so that parameters are shards again (a forward without gradients leaves the root's)."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(value: Tensor) -> Tensor:
    """A weight without its gradient, gathered where it is sharded; then a collective call."""
    value = value.detach()
    return cast("Tensor", value.full_tensor()) if hasattr(value, "full_tensor") else value


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gather all weights once, for many forward passes or to read them, and shard them again afterwards.

    Inside, no forward pass communicates, so every process may decode as long as it likes. Entering is a collective
    call and needs room for all weights on every device. Without FSDP nothing happens.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    # FSDP2 has no getter for this flag; the root keeps its weights after forward, the layers free theirs.
    freed = [part._get_fsdp_state()._fsdp_param_group for part in parts]
    flags = [group is not None and group.post_forward_mesh_info is not None for group in freed]
    for root in parts[:1]:
        # The first part that runs takes itself for the root; before any forward pass that would be a layer.
        root._get_fsdp_state()._lazy_init()
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part, flag in zip(parts, flags, strict=True):
            part.reshard()
            part.set_reshard_after_forward(flag, recurse=False)
