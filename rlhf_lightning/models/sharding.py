"""FSDP2 on an actor: what is sharded, how it is gathered, and how frozen weights come along.

The root of the sharding is the :class:`~rlhf_lightning.models.actor.Actor`, since everything is computed through its
``forward``; each decoder layer is a group of its own, and what is left (embeddings, final norm, head) belongs to the
root group, where tied embeddings stay tied.

Under autocast the gathers carry the dtype that is computed in, half the bytes of the float32 shards. Whatever is
computed with such weights is then computed under autocast (:func:`compute_dtype`), and what reads weights gathers the
shards themselves (:func:`whole_weights`). Activation checkpointing lies inside of the sharded layers, as transformers
checkpoints a layer's ``forward`` and FSDP2's hooks are around it: computing a layer again gathers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from rlhf_lightning.models.blocks import decoder_layers
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.loading.weights import is_quantized
from rlhf_lightning.models.shares import read_shares

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


#: Attribute of a sharded actor: the dtype of :func:`compute_dtype`.
_COMPUTE = "compute_dtype"


def shard_actor(
    actor: nn.Module,
    mesh: DeviceMesh,
    *,
    cpu_offload: bool = False,
    compute: torch.dtype | None = None,
) -> None:
    """Shard an actor in place; does nothing when it is sharded already.

    Gradients are reduced in float32. Weights that are not read yet are read from their files, by each process the rows
    that it keeps.

    Args:
        actor: every process must hold the same weights, or none (:mod:`~rlhf_lightning.models.shares`).
        mesh: the data-parallel processes: one dimension, or groups that each hold the model x processes of a group.
        cpu_offload: keep shards, gradients and optimiser state in host memory.
        compute: dtype of autocast, which weights are gathered in; None: that of the weights.

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
        "offload_policy": CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
    }
    headed = any(name != "model" for name, _ in actor.named_children())
    for layer in decoder_layers(actor):
        fully_shard(layer, mp_policy=_precision(compute), **options)
    # Heads beside the model compute in float32 whatever autocast says, and they are in the root's group.
    fully_shard(actor, mp_policy=_precision(None if headed else compute), **options)
    register_fsdp_forward_method(actor, "inside")
    read_shares(actor, cpu_offload=cpu_offload)
    if compute is not None:
        setattr(actor, _COMPUTE, compute)
        _compute_under_autocast(actor, mesh.device_type, compute)


def _precision(gathered: torch.dtype | None) -> MixedPrecisionPolicy:
    return MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _compute_under_autocast(actor: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Open autocast around the actor's ``forward``, and keep the stream of hidden states in float32 as autocast does.

    The stream's dtype is that of the embeddings, which are gathered in half precision.
    """
    opened: list[ExitStack] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        opened.append(ExitStack())
        opened[-1].enter_context(torch.autocast(device, dtype=dtype))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        opened.pop().close()

    def widen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.float() if torch.is_autocast_enabled(device) else output

    actor.register_forward_pre_hook(enter)
    actor.register_forward_hook(leave, always_call=True)
    embedding: Any = transformers_model(actor).get_input_embeddings()
    embedding.register_forward_hook(widen)


def compute_dtype(actor: nn.Module) -> torch.dtype | None:
    """The dtype of autocast that a sharded actor's gathered weights are in; None: they are as the shards."""
    dtype: torch.dtype | None = getattr(actor, _COMPUTE, None)
    return dtype


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
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Weights to be read, not computed with: gathered in the dtype of the shards, which lie there again afterwards.

    Entering is a collective call and needs room for all weights on every device. Without FSDP nothing happens.
    """
    reshard(module)
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    gathered: dict[int, nn.Parameter] = {}  # a tied weight once
    try:
        for part in module.modules():
            for name, weight in list(part.named_parameters(recurse=False, remove_duplicate=False)):
                if hasattr(weight, "full_tensor"):
                    if id(weight) not in gathered:
                        gathered[id(weight)] = nn.Parameter(whole(weight), requires_grad=weight.requires_grad)
                    swapped.append((part, name, weight))
                    part.register_parameter(name, gathered[id(weight)])
        yield
    finally:
        for part, name, weight in swapped:
            part.register_parameter(name, weight)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Gather all weights once, for many forward passes, and shard them again afterwards.

    Inside, no forward pass communicates, so every process may decode as long as it likes. Entering is a collective
    call and needs room for all weights on every device. They are in :func:`compute_dtype`: :func:`whole_weights` is for
    what reads them. Without FSDP nothing happens.
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
