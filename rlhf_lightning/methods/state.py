"""What of a module goes into a checkpoint: what was trained, never what was only loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

#: Key of a refreshed reference in a checkpoint.
REFERENCE = "reference"


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
    own = without_frozen(module, module.state_dict())
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    reshaped = sorted(
        key
        for key in own.keys() & state.keys()
        if getattr(own[key], "shape", None) != getattr(state[key], "shape", None)
    )
    for problem, keys in (("lacks", missing), ("has unknown", unknown), ("has another shape for", reshaped)):
        if keys:
            raise ValueError(
                f"the checkpoint {problem} {len(keys)} of this module's trained weights, for example {keys[0]}: "
                "resume with the model, adapter and method options that wrote it, or set ckpt_path=null to start anew"
            )


def reference_weights(reference: Any, policy: nn.Module) -> dict[str, Any]:
    """What refreshing can have changed of a frozen copy, on the CPU; a collective call where it is sharded.

    Under FSDP2 only process 0 gets the weights, the others get an empty dict.
    """
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(reference.actor, options=options)
    return {name: weight.clone() for name, weight in weights.items() if name in trained}


def restore_reference(reference: Any, weights: Mapping[str, Tensor]) -> None:
    """Put a refreshed reference's weights back, sharded or not.

    Raises:
        ValueError: the run has no reference of its own to put them into.
    """
    if not hasattr(reference, "refresh"):
        raise ValueError("the checkpoint holds a refreshed reference: resume with reference=frozen, as it was trained")
    set_model_state_dict(reference.actor, dict(weights), options=StateDictOptions(full_state_dict=True, strict=False))
    reference.refreshed = True
