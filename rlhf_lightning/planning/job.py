"""Job whose cost is counted: what it trains, on how many tokens, and how it is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf_lightning.planning.shape import ModelShape

#: Ways to divide a job over processes.
Strategy = Literal["single", "ddp", "fsdp"]
Precision = Literal["float32", "mixed", "half"]


@dataclass(frozen=True)
class Draws:
    """Responses that are drawn for a rollout.

    Attributes:
        responses: a prompt.
        batch: most responses that one process decodes together.
        copy_bytes: of each weight of a copy that draws; 0: the trained weights draw.
        cache_bytes: of a number of keys and values.
        minibatches: optimiser steps whose prompts a rollout has.
        epochs: times that it is trained on.
        scoring: passes without gradients over a rollout before it is trained on.
    """

    responses: int = 1
    batch: int = 64
    copy_bytes: int = 0
    cache_bytes: int = 4
    minibatches: int = 1
    epochs: int = 1
    scoring: int = 0


@dataclass(frozen=True)
class Job:
    """A job as numbers: what is trained, and on what.

    Attributes:
        shape: of the policy.
        groups: an optimiser step, over all processes.
        prompt: tokens of a prompt.
        response: tokens of a response.
        responses: of a group that are trained on.
        accumulate: micro-batches of a step.
        precision: ``float32``, ``mixed`` (half-precision products of full-precision weights) or ``half``.
        weight_bytes: of each weight of the policy outside an adapter, quantised ones included.
        optimizer_bytes: that the optimiser keeps of each trained weight.
        reference: a frozen copy in memory (``copy``), a pass through the policy's own weights (``shared``), or none.
        critic: whether a second model of the policy's shape is trained with it.
        checkpointing: whether activations are computed again in the backward pass.
        head_block: bytes of a block of float32 logits.
        draws: None: the responses are the data's.
    """

    shape: ModelShape
    groups: int
    prompt: int
    response: int
    responses: int = 1
    accumulate: int = 1
    precision: Precision = "float32"
    weight_bytes: float = 4.0
    optimizer_bytes: float = 8.0
    reference: Literal["copy", "shared", "none"] = "none"
    critic: bool = False
    checkpointing: bool = False
    head_block: int = 2**28
    draws: Draws | None = None

    @property
    def models(self) -> int:
        """Models that are trained."""
        return 2 if self.critic else 1

    @property
    def trained_bytes(self) -> int:
        """Bytes of a trained weight and of its gradient; an adapter is float32."""
        return 2 if self.precision == "half" and not self.shape.adapter else 4

    @property
    def tokens(self) -> int:
        """Tokens of an optimiser step: every prompt once with its responses."""
        return self.groups * (self.prompt + self.responses * self.response)

    @property
    def response_tokens(self) -> int:
        """Tokens of an optimiser step that reach the vocabulary."""
        return self.groups * self.responses * self.response

    def micro_groups(self, devices: int) -> int:
        """Groups of the largest micro-batch of a process."""
        return -(-self.groups // (devices * self.accumulate))

    def micro_tokens(self, devices: int) -> int:
        """Tokens of the largest micro-batch of a process."""
        return self.micro_groups(devices) * (self.prompt + self.responses * self.response)
