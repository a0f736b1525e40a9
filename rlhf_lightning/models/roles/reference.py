"""References that the policy is compared with: the initial policy in one of several forms, or a teacher.

``frozen`` is a second copy of the initial weights, ``adapter_off`` the policy itself without its adapter (no second
copy), ``cached`` numbers that were computed before training (no model at all). They give the same numbers, or the run
does not start: see :func:`initial_policy`.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rlhf_lightning.models.adapters.lora import is_adapted
from rlhf_lightning.models.adapters.start import AdapterStart
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.sharding import reshard
from rlhf_lightning.types import PackedBatch, SequenceLogProbs

log = logging.getLogger(__name__)


class ReferenceKind(StrEnum):
    """Model that the policy's log-probs are compared with."""

    AUTO = "auto"
    FROZEN = "frozen"
    ADAPTER_OFF = "adapter_off"
    CACHED = "cached"
    TEACHER = "teacher"
    NONE = "none"


class Reference(Protocol):
    """Log-probs of what the policy is compared with; never has gradients."""

    kind: ReferenceKind
    refreshed: bool  #: whether its weights changed after loading, so that they belong into checkpoints

    def __call__(self, batch: PackedBatch, **options: Any) -> Any:
        """Log-probability of every scored token; or what the options of the actor's ``forward`` ask for."""
        ...


class FrozenCopy(nn.Module):
    """The policy's weights as they were, or as they were last refreshed.

    Always in evaluation mode, whatever its owner is set to.

    Args:
        actor: the copy; see :meth:`of`.
    """

    kind = ReferenceKind.FROZEN

    def __init__(self, actor: Backbone) -> None:
        super().__init__()
        # Read before freezing: what training never touches never needs refreshing.
        self._trained = [name for name, parameter in actor.named_parameters() if parameter.requires_grad]
        self.actor = actor.requires_grad_(False).eval()
        self.refreshed = False
        #: An adapter's weights at the start, for checkpoints: they are random numbers, or come from a folder that may
        #: hold others when the run is resumed. On the CPU, by name; empty without an adapter.
        self.start = self._trained_weights() if is_adapted(getattr(actor, "model", actor)) else {}

    @classmethod
    def of(cls, policy: Backbone) -> FrozenCopy:
        """A frozen copy of the policy as it is now, adapter included."""
        return cls(policy.policy_copy())

    def _trained_weights(self) -> dict[str, Tensor]:
        trained = set(self._trained)
        return {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in self.actor.named_parameters()
            if name in trained
        }

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: PackedBatch, **options: Any) -> Any:
        """Log-probability of every scored token under the copy, or what the options of its ``forward`` ask for."""
        return self.actor(batch, **options)

    @torch.no_grad()
    def refresh(self, policy: nn.Module, weight: float = 1.0) -> None:
        r"""Move the reference towards the policy: :math:`\theta_{ref} \leftarrow w\,\theta + (1 - w)\,\theta_{ref}`.

        TR-DPO (arXiv:2404.09656) eq. 1-2; an exponential moving average is this after every step with a small weight.
        The mix is computed in float32 and rounded to the weights' dtype. Works on shards, without communication.

        Args:
            policy: the actor that this reference was copied from.
            weight: w in (0, 1]; 1 is a hard update, that is, a copy.

        Raises:
            ValueError: ``weight`` is out of range.
        """
        if not 0 < weight <= 1:
            raise ValueError(f"the weight of a reference update is {weight}; it must be in (0, 1]")
        reshard(policy)
        reshard(self.actor)
        source, target = dict(policy.named_parameters()), dict(self.actor.named_parameters())
        for name in self._trained:
            held, new = target[name], source[name].to(dtype=target[name].dtype)
            held.copy_(new if weight == 1 else torch.lerp(held.float(), source[name].float(), weight))
        self.refreshed = True


class Teacher(FrozenCopy):
    """Another model of the same vocabulary, which never changes.

    Args:
        actor: around the other model's weights.
    """

    kind = ReferenceKind.TEACHER

    def refresh(self, policy: nn.Module, weight: float = 1.0) -> None:
        """Refuse: the policy's weights are not the teacher's.

        Raises:
            ValueError: always.
        """
        raise ValueError("reference=teacher is another model and cannot follow the policy: choose reference=frozen")


class AdapterDisabled:
    """The policy without its adapter: a reference that costs no memory.

    It is the initial policy where the adapter starts at zero and nothing beneath it is trained, which
    :func:`initial_policy` makes sure of.

    Args:
        policy: an actor whose model has an adapter.
    """

    kind = ReferenceKind.ADAPTER_OFF
    refreshed = False

    def __init__(self, policy: Backbone) -> None:
        if not is_adapted(policy.model):
            raise ValueError("reference=adapter_off needs an adapter: adapter=lora, or choose reference=frozen")
        self.policy = policy

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, **options: Any) -> Any:
        """Log-probability of every scored token under the base model, without dropout; or what the options ask for."""
        with evaluating(self.policy):
            return self.policy(batch, adapter=False, **options)


class Cached:
    """Log-probs that came with the batch, computed before training and stored by content."""

    kind = ReferenceKind.CACHED
    refreshed = False

    def __init__(self) -> None:
        self.fingerprint: str | None = None  #: of the model that computed them, once it is known

    def __call__(self, batch: PackedBatch, **options: Any) -> SequenceLogProbs:
        """The batch's own reference log-probs.

        Raises:
            ValueError: the batch has none, or something else was asked for.
        """
        if options:
            raise ValueError(f"reference=cached holds log-probs only, not {sorted(options)}: choose reference=frozen")
        if batch.reference_log_probs is None:
            raise ValueError(
                "reference=cached, but this batch carries no reference log-probs: fill the cache before training "
                "(rlhf train does so) and give the data module its reference_store, or choose reference=frozen"
            )
        ragged = batch.ragged(batch.reference_log_probs)
        return SequenceLogProbs(ragged.token, ragged.sequence, ragged.count, ragged.mean_length)


def placed(model: Any, policy: nn.Module) -> Any:
    """A model that belongs to no module on the policy's device and in its dtype; anything else as it is.

    A sharded one is where its shards are, and what is gathered of the policy says nothing about its dtype.

    Args:
        model: a reference, or None.
        policy: which Lightning places.
    """
    if isinstance(model, nn.Module) and not isinstance(getattr(model, "actor", None), FSDPModule):
        weight, example = next(model.parameters()), next(policy.parameters())
        if weight.device != example.device or weight.dtype != example.dtype:
            model.to(device=example.device, dtype=example.dtype)
    return model


def initial_policy(policy: Backbone, start: AdapterStart | None, kind: ReferenceKind) -> FrozenCopy | AdapterDisabled:
    """The initial policy as a live reference.

    Args:
        policy: at its start, with the weights that training begins with.
        start: what its adapter does at the start; None: it has none.
        kind: ``frozen``, ``adapter_off``, or ``auto``: the policy without its adapter where that is the initial policy,
            else a frozen copy.

    Raises:
        ValueError: ``adapter_off``, and the policy without its adapter is another one than the initial policy, or would
            be trained.
    """
    if kind is ReferenceKind.FROZEN or (kind is ReferenceKind.AUTO and start is None):
        return FrozenCopy.of(policy)
    if start is None or start.is_base:
        return AdapterDisabled(policy)
    if kind is ReferenceKind.ADAPTER_OFF:
        raise ValueError(
            f"reference=adapter_off is not the initial policy here: {start.reason()}. Choose reference=auto or "
            "reference=frozen, which keep a copy of the policy as training begins"
        )
    log.info("reference is a frozen copy of the initial policy, the weights a second time: %s", start.reason())
    return FrozenCopy.of(policy)
