"""Adapters that vLLM can follow: merged into a plain base, or sent alone for the base that a server holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rlhf_lightning.models.adapters.lora import is_adapted
from rlhf_lightning.models.adapters.start import rewrites_base
from rlhf_lightning.rollout.weights import QUANTIZED

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.adapters.lora import Adapter

#: Ranks that vLLM has kernels for.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: Fields of PEFT's configuration with which an adapter is more than low-rank updates, by the option that sets each.
_BEYOND_LORA = {
    "use_dora": "adapter.dora",
    "modules_to_save": "adapter.modules_to_save",
    "lora_bias": "adapter.options.lora_bias",
    "trainable_token_indices": "adapter.options.trainable_token_indices",
    "layer_replication": "adapter.options.layer_replication",
    "alora_invocation_tokens": "adapter.options.alora_invocation_tokens",
    "use_qalora": "adapter.options.use_qalora",
    "use_bdlora": "adapter.options.use_bdlora",
}
_NO_ADAPTER = "rollout.lora=true needs an adapter: set adapter=lora, or rollout.lora=false"
_CURE = "set rollout.lora=false, which sends the merged weights"


def check_adapter(adapter: Adapter | None, *, lora: bool, serves_base: bool) -> None:
    """Refuse an adapter that vLLM could not follow, before weights load.

    Args:
        adapter: of the run.
        lora: whether it is sent alone (``rollout.lora``).
        serves_base: whether a running server holds the base (``rollout.url``), so that it need not be sent.

    Raises:
        ValueError: such an adapter, or none to send.
    """
    if adapter is not None and adapter.quantize is not None and not (lora and serves_base):
        raise ValueError(QUANTIZED)
    if not lora:
        return
    if adapter is None:
        raise ValueError(_NO_ADAPTER)
    read = getattr(adapter, "config", None)
    if read is not None:  # else its configuration is known once it is on the model
        check_plain(read())


def check_policy(policy: Actor) -> None:
    """Refuse a policy whose adapter alone is not what training changes.

    Args:
        policy: as it is trained.

    Raises:
        ValueError: such a policy.
    """
    if not is_adapted(policy.model):
        raise ValueError(_NO_ADAPTER)
    model: Any = policy.model
    for config in model.peft_config.values():
        check_plain(config)
    trained = [name for name, value in policy.model.named_parameters() if value.requires_grad]
    if others := [name for name in trained if ".lora_" not in name]:
        raise ValueError(
            f"rollout.lora=true sends low-rank updates, and {len(others)} other weights are trained, for example "
            f"{others[0]}: {_CURE}"
        )


def check_plain(config: Any) -> None:
    """Refuse an adapter that is anything but low-rank updates of an unchanged base.

    Args:
        config: PEFT's.

    Raises:
        ValueError: with the option to change.
    """
    if reason := next(_reasons(config), None):
        raise ValueError(f"rollout.lora=true sends low-rank updates of an unchanged base, and {reason}: {_CURE}")


def largest_rank(config: Any) -> int:
    """The largest rank of a LoRA's layers."""
    return max(int(rank) for rank in (config.r, *config.rank_pattern.values()))


def _reasons(config: Any) -> Iterator[str]:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        yield f"the adapter is of kind {kind}"
        return
    for field, option in _BEYOND_LORA.items():
        if getattr(config, field, None):
            yield f"{option} is more than that"
    if config.bias != "none":
        yield f"adapter.options.bias={config.bias} trains weights of the base"
    if largest_rank(config) > LORA_RANKS[-1]:
        yield f"vLLM's largest rank is {LORA_RANKS[-1]}"
    if rewrites_base(config):
        yield f"adapter.init={config.init_lora_weights} changes the base's weights when training starts"
