"""The state of a module in a checkpoint: what was trained, never what was only loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.tensor import DTensor

from rlhf_lightning.models.adapters.start import BASE
from rlhf_lightning.models.roles.reference import AdapterDisabled, FrozenCopy

#: Keys of a checkpoint: a refreshed reference; the start of an adapter that a frozen reference has; the fingerprint of
#: the model behind a cached reference.
REFERENCE, REFERENCE_START, FINGERPRINT = "reference", "reference_start", "reference_fingerprint"
#: Policies of earlier rounds, by role.
EARLIER = "earlier"


def without_frozen(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict less the module's frozen parameters (and the quantisation state that hangs on them)."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    prefixes = tuple(f"{name}." for name in frozen)
    return {key: value for key, value in state.items() if key not in frozen and not key.startswith(prefixes)}


def check_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that another model or another adapter wrote.

    Raises:
        ValueError: it lacks trained weights of this module, has others, or has another shape for one.
    """
    trained = without_frozen(module, module.state_dict())
    missing, unknown = sorted(trained.keys() - state.keys()), sorted(state.keys() - trained.keys())
    reshaped = sorted(
        key
        for key in trained.keys() & state.keys()
        if getattr(trained[key], "shape", None) != getattr(state[key], "shape", None)
    )
    for problem, keys in (("lacks", missing), ("has unknown", unknown), ("has another shape for", reshaped)):
        if keys:
            raise ValueError(
                f"the checkpoint {problem} {len(keys)} of this module's trained weights, for example {keys[0]}: "
                "resume with the model, adapter and method options that wrote it, or set ckpt_path=null to start from "
                "scratch"
            )


def reference_weights(reference: Any, policy: nn.Module) -> dict[str, Any]:
    """Weights of a frozen copy that refreshing may have changed: sharded where it is, else on the CPU."""
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    weights: dict[str, Any] = get_model_state_dict(reference.actor)
    kept = {name: weight for name, weight in weights.items() if name in trained}
    return {name: weight if isinstance(weight, DTensor) else weight.cpu().clone() for name, weight in kept.items()}


def reference_state(module: Any) -> dict[str, Any]:
    """Entries of a checkpoint that give a resumed run the reference that it began with; a collective call.

    Args:
        module: an ``AlignmentModule``.
    """
    reference, state = module.reference, {}
    if module.adapter_start is not None:
        state[BASE] = module.adapter_start.state()
    if reference is not None and reference.refreshed:
        state[REFERENCE] = reference_weights(reference, module.policy)
    elif start := getattr(reference, "start", None):
        state[REFERENCE_START] = start
    if (fingerprint := getattr(reference, "fingerprint", None)) is not None:
        state[FINGERPRINT] = fingerprint
    if earlier := _earlier_state(module):
        state[EARLIER] = earlier
    return state


def _earlier_state(module: Any) -> dict[str, Any]:
    """State of the copies that rewards name by role, without those that are the reference."""
    by_role: dict[str, Any] = {}
    for role, copy in module.earlier.items():
        if copy is module.reference:
            continue
        refreshed = copy.refreshed
        if isinstance(copy, FrozenCopy):
            weights = reference_weights(copy, module.policy) if refreshed else copy.start
        else:
            weights = {} if isinstance(copy, AdapterDisabled) else copy.weights
        if weights:
            by_role[role] = {"refreshed": refreshed, "weights": dict(weights)}
    return by_role


def _restore_earlier(module: Any, saved: Mapping[str, Any]) -> None:
    """Put back what :func:`_earlier_state` kept."""
    for role, state in saved.items():
        copy = module.earlier.get(role)
        if isinstance(copy, FrozenCopy):
            _load(copy.actor, dict(state["weights"]))
            copy.refreshed = state["refreshed"]
            copy.start = copy.start if copy.refreshed else dict(state["weights"])
        elif copy is not None:
            copy.load(state["weights"], refreshed=state["refreshed"])


def _load(actor: nn.Module, saved: dict[str, Any]) -> None:
    """Load some weights of a model, sharded or not."""
    whole = not any(isinstance(weight, DTensor) for weight in saved.values())
    set_model_state_dict(actor, saved, options=StateDictOptions(full_state_dict=whole, strict=False))


def restore_reference(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Put back what :func:`reference_state` kept, sharded or not, and compare what cannot be put back.

    Args:
        module: an ``AlignmentModule`` as it is before training.
        checkpoint: a whole one; an older one lacks what it did not keep.

    Raises:
        ValueError: the checkpoint has a refreshed reference and the module has no copy to put it into, or the module's
            base or cached reference is that of another model.
    """
    reference = module.reference
    if BASE in checkpoint and module.adapter_start is not None:
        module.adapter_start.check(checkpoint[BASE])
    if module.trainer.state.fn == "fit":  # an evaluation may run in another precision
        _check_cached(reference, checkpoint.get(FINGERPRINT))
    copy = hasattr(reference, "refresh")
    if REFERENCE in checkpoint and not copy:
        raise ValueError("the checkpoint holds a refreshed reference: resume with reference=frozen, as it was trained")
    for key in (REFERENCE, REFERENCE_START):
        if key in checkpoint and copy:
            _load(reference.actor, dict(checkpoint[key]))
    if REFERENCE in checkpoint:
        reference.refreshed = True
    elif REFERENCE_START in checkpoint and copy:
        reference.start = dict(checkpoint[REFERENCE_START])
    _restore_earlier(module, checkpoint.get(EARLIER, {}))


def _check_cached(reference: Any, saved: str | None) -> None:
    computed = getattr(reference, "fingerprint", None)
    if saved is not None and computed is not None and saved != computed:
        raise ValueError(
            "reference=cached: the initial policy is not the one that this run began with, so its log-probs would "
            "differ from here on: resume with the model, adapter (also the contents of adapter.path, and adapter.seed) "
            "and trainer.precision that wrote the checkpoint, or set ckpt_path=null"
        )
