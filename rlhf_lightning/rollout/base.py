"""What draws responses from a policy, as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rlhf_lightning.types import Sample, Sampling

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor


@runtime_checkable
class RolloutEngine(Protocol):
    """Token ids in, samples out.

    Attributes:
        name: for messages and logs.
        exact: whether what is drawn depends on nothing but the weights, the prompt and the stream; engines that batch
            by themselves cannot promise it.
        max_new_tokens: most tokens of a response.
        min_new_tokens: tokens before which a response cannot end.
        max_gap: largest mean difference of the engine's log-probs from the trainer's that a run goes on with, in nats
            a token; None: any.
    """

    name: str
    exact: bool
    max_new_tokens: int
    min_new_tokens: int
    max_gap: float | None

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Draw ``n`` responses to each prompt.

        Where the policy is shared by several processes this is a collective call, each with its own prompts.

        Args:
            prompts: token ids.
            sampling: how tokens are drawn.
            n: samples a prompt, >= 1.
            seeds: one a prompt; sample ``j`` draws from the stream ``(seeds[i], j)``.

        Returns:
            For each prompt its samples.
        """
        ...

    def sync(self, policy: Actor, version: int) -> None:
        """Hold these weights from now on; a collective call.

        Args:
            policy: the actor that is trained.
            version: optimiser steps it has taken; samples carry it.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds (processes, copies of weights)."""
        ...
