"""The policy as it was earlier in a run: models that rewards name by role, kept as small as they can be.

``initial`` is the policy of the run's start, ``previous_round`` that of the start of the round before; before the
first round ends the latter is what the policy was trained from, where somebody says what that is. A role that the
run's reference plays already is the reference; under an adapter a copy holds the adapter alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lightning.models.adapters.start import AdapterStart
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.roles.reference import AdapterDisabled, FrozenCopy, Reference, ReferenceKind, initial_policy
from rlhf_lightning.models.sharding import reshard, unsharded
from rlhf_lightning.models.sources import ModelSource
from rlhf_lightning.sharded_state import like

#: Roles that another model than the policy may have to play when responses are scored.
ROLES = ("initial", "previous_round")
#: In the place of a source: the run's own model, without the weights that the run starts from.
MODEL = "model"


class AdapterCopy:
    """The policy's adapter as it was, or as it was last refreshed, for the base that the policy has.

    Args:
        policy: an actor whose model has an adapter.
        before: what stands in until the first refresh; None: the adapter as it is now.
    """

    def __init__(self, policy: Backbone, before: Reference | None = None) -> None:
        self.policy, self.before = policy, before
        self.refreshed = False
        #: By name, sharded as the policy's; empty while ``before`` stands in.
        self.weights: dict[str, Tensor] = {} if before is not None else _trained(policy)

    def refresh(self, policy: Backbone, weight: float = 1.0) -> None:
        """Copy the adapter as it is now; works on shards, without communication.

        Args:
            policy: the actor that this copy is of.
            weight: of the new weights; a copy has 1 alone.

        Raises:
            ValueError: another weight.
        """
        if weight != 1:
            raise ValueError(f"a copy of an adapter is refreshed as a whole, not by a weight of {weight}")
        reshard(policy)
        self.weights, self.before, self.refreshed = _trained(policy), None, True

    def shard(self) -> None:
        """Share the weights out as the policy's are, after that was sharded; a collective call."""
        self.load(self.weights, refreshed=self.refreshed)

    def load(self, weights: Mapping[str, Tensor], *, refreshed: bool) -> None:
        """Take weights, whole or sharded, by name; a collective call where the policy is sharded."""
        reshard(self.policy)
        target = dict(self.policy.named_parameters())
        self.weights = {name: like(weight, target[name]) for name, weight in weights.items()}
        self.refreshed = refreshed
        if refreshed:
            self.before = None

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """Let the policy have these weights for a while; afterwards it has its own to the bit."""
        reshard(self.policy)
        current = _trained(self.policy)
        _set(self.policy, self.weights)
        try:
            yield
        finally:
            reshard(self.policy)
            _set(self.policy, current)


@dataclass(frozen=True)
class Earlier:
    """Earlier policies that are required, and the models that already stand for them.

    Attributes:
        roles: some of :data:`ROLES`.
        parent: what plays ``previous_round`` in the first round: the model that the policy was trained from, or
            ``model``; None: the policy of the run's start.
        reference: the role that the run's reference plays; None: none of them.
    """

    roles: frozenset[str]
    parent: ModelSource | Literal["model"] | None = None
    reference: str | None = None

    def models(
        self, policy: Backbone, start: AdapterStart | None, reference: Reference | None, parent: Any
    ) -> dict[str, Any]:
        """The models by role.

        Args:
            policy: at its start.
            start: what its adapter does there; None: it has none.
            reference: of the run.
            parent: a reference of what the policy was trained from, or a copy of it that can be refreshed; None: the
                policy itself.
        """
        by_role: dict[str, Any] = {}
        live = reference is not None and reference.kind in (ReferenceKind.FROZEN, ReferenceKind.ADAPTER_OFF)
        for role in sorted(self.roles):
            if live and role == self.reference and (role == "initial" or parent is None):
                by_role[role] = reference
            elif role == "initial":
                by_role[role] = initial_policy(policy, start, ReferenceKind.AUTO)
            elif start is None:
                by_role[role] = FrozenCopy.of(policy) if parent is None else parent
            else:
                by_role[role] = parent if isinstance(parent, AdapterCopy) else AdapterCopy(policy, parent)
        return by_role


def without_start(policy: Backbone, *, adapted: bool, replaced: bool) -> AdapterDisabled | AdapterCopy | FrozenCopy:
    """The run's model without the weights that the run starts from.

    Args:
        policy: as it was loaded, before another run's weights are put into it.
        adapted: it has an adapter.
        replaced: another run's weights will be put into it; else the adapter is the one that training continues from.
    """
    if not adapted:
        return FrozenCopy.of(policy)
    return AdapterCopy(policy) if replaced else AdapterDisabled(policy)


def check_shapes(copy: FrozenCopy, policy: Backbone, name: str) -> None:
    """Refuse a parent that the policy's weights cannot be copied into.

    Raises:
        ValueError: it has other weights.
    """
    shapes, of_parent = (
        {key: weight.shape for key, weight in model.named_parameters()} for model in (policy, copy.actor)
    )
    differing = sorted(key for key in shapes.keys() | of_parent.keys() if shapes.get(key) != of_parent.get(key))
    if differing:
        raise ValueError(
            f"rounds.parent={name} has other weights than the policy, for example {differing[0]}: name the model that "
            "the policy was trained from"
        )


@contextmanager
def computing(model: Any, policy: Backbone) -> Iterator[Any]:
    """A model that computes packed batches without gradients, its weights gathered; a collective call where sharded.

    Args:
        model: the policy, a reference, or an :class:`AdapterCopy`.
        policy: what is trained.
    """
    model = getattr(model, "before", None) or model
    with ExitStack() as stack:
        if isinstance(model, AdapterCopy):
            stack.enter_context(model.put_in())
            model = policy
        actor = getattr(model, "actor", policy)
        stack.enter_context(unsharded(actor))
        stack.enter_context(evaluating(actor))
        stack.enter_context(torch.no_grad())
        yield model


def _trained(policy: Backbone) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.named_parameters() if weight.requires_grad}


@torch.no_grad()
def _set(policy: Backbone, weights: dict[str, Tensor]) -> None:
    target = dict(policy.named_parameters())
    for name, weight in weights.items():
        target[name].copy_(weight)
