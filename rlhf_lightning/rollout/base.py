"""Interface of engines that draw responses from a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from rlhf_lightning.types import Sample, Sampling

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.adapters.lora import Adapter
    from rlhf_lightning.models.guidance import Guidance


@runtime_checkable
class RolloutEngine(Protocol):
    """Token ids in, samples out.

    Attributes:
        name: for messages and logs.
        exact: whether samples depend on nothing but the weights, the prompt and the stream; engines that batch
            by themselves cannot promise it.
        max_new_tokens: most tokens of a response.
        min_new_tokens: tokens before which a response cannot end.
        sources: whose responses it can draw, see ``types.Draw``; with more than ``policy`` it is a
            :class:`ReferenceEngine`.
        frozen: whether its weights cannot follow a policy that is trained.
        max_gap: largest mean difference of the engine's log-probs from the trainer's that a run continues with, in nats
            a token; None: any.
    """

    name: str
    exact: bool
    frozen: bool
    sources: frozenset[str]
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

    def check_adapter(self, adapter: Adapter | None) -> None:
        """Refuse a policy that the engine could not follow, before weights load.

        Args:
            adapter: what the policy is trained with; None: all of its weights are trained.

        Raises:
            ValueError: the engine cannot hold such a policy.
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


@runtime_checkable
class GuidedEngine(RolloutEngine, Protocol):
    """An engine that also draws guided samples."""

    def guide(self, guidance: Guidance) -> None:
        """Let this decide on tokens too where ``Sampling.guided`` asks for it.

        Args:
            guidance: checked, see :class:`~rlhf_lightning.models.guidance.Guidance`.
        """
        ...


@runtime_checkable
class ReferenceEngine(RolloutEngine, Protocol):
    """An engine that also draws from the reference."""

    def hold(self, reference: Any) -> None:
        """Draw from this reference where ``Sampling.source`` asks for it.

        Args:
            reference: a live one, on the policy's device.
        """
        ...
