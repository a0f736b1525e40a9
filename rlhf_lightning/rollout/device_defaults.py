"""Defaults of rollout engines by the kind of device; on a CPU responses keep the trainer's dtype."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.loading.weights import is_quantized

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor

log = logging.getLogger(__name__)

#: Responses decoded together. More on a GPU, whose decode steps are bound by reading weights; 256 was not tuned on one.
CPU_ROWS, ACCELERATOR_ROWS = 64, 256


def rows_together(kind: str) -> int:
    """Most responses that are decoded together, by the kind of device."""
    rows = CPU_ROWS if kind == "cpu" else ACCELERATOR_ROWS
    log.info("rollout.batch_size=null: at most %d responses are decoded together on a device of kind %s", rows, kind)
    return rows


def copy_dtype(policy: Actor, kind: str) -> torch.dtype | None:
    """The dtype of the copy that responses are drawn from, by the kind of device; None: from the policy itself."""
    model: Any = transformers_model(policy)
    if kind == "cpu":
        reason = "a CPU draws from the policy's own weights"
    elif is_quantized(policy.model):
        reason = "a quantised base has no weights to cast"
    elif model.get_input_embeddings().weight.dtype != torch.float32:
        reason = "the policy's weights are not float32"
    else:
        log.info("rollout.dtype=auto: responses are drawn from a copy of the policy in bfloat16")
        return torch.bfloat16
    log.info("rollout.dtype=auto: no copy is made, since %s", reason)
    return None


def eager(choice: bool | None, *, cpu: bool) -> bool:
    """Return whether vLLM computes without compiling."""
    if choice is not None:
        return choice
    log.info(
        "rollout.vllm.enforce_eager=null: %s", "eager on a CPU" if cpu else "CUDA graphs are captured at the start"
    )
    return cpu
