"""Rollouts by the policy's own transformers model, in the process that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.models.generation import sample
from rlhf_lightning.types import Sample, Sampling

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor


class TransformersEngine:
    """Samples from the live policy: its weights are the trainer's, so there is nothing to copy.

    Each process draws for its own prompts. Sharded weights are gathered for the length of a call.

    Args:
        tokenizer: not used; the model knows which tokens end a response.
        max_new_tokens: most tokens of a response, its EOS included.
        min_new_tokens: tokens before which a response cannot end.
        batch_size: most responses decoded together.
        batch_tokens: most tokens of a batch with its prompts, were all responses as long as they may be; null: any.
        max_gap: largest mean difference of these log-probs from the trainer's that a run goes on with, in nats a token;
            null: any.

    Raises:
        ValueError: an option is out of range.
    """

    name = "transformers"
    exact = True

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        batch_size: int = 64,
        batch_tokens: int | None = 65536,
        max_gap: float | None = 0.2,
    ) -> None:
        Sampling(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)  # checks them
        if batch_size < 1 or (batch_tokens is not None and batch_tokens < 1):
            raise ValueError(f"rollout.batch_size={batch_size} and batch_tokens={batch_tokens} must be at least 1")
        if max_gap is not None and max_gap <= 0:
            raise ValueError(f"rollout.max_gap={max_gap} must be positive, or null for no bound")
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        self.batch_size, self.batch_tokens, self.max_gap = batch_size, batch_tokens, max_gap
        self.policy: Actor | None = None
        self.version = 0

    def sync(self, policy: Actor, version: int) -> None:
        """Sample from this actor, as it is at each call."""
        self.policy, self.version = policy, version

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Draw ``n`` responses to each prompt; a collective call.

        Raises:
            ValueError: no policy was given yet, ``n`` is out of range, a prompt is empty, or seeds are missing.
        """
        if self.policy is None:
            raise ValueError("the engine has no policy yet: call sync(policy, version) before generate")
        if n < 1:
            raise ValueError(f"n={n} samples a prompt must be at least 1")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        samples = sample(
            self.policy,
            [prompt for prompt in prompts for _ in range(n)],
            sampling,
            streams=[(seed, number) for seed in seeds for number in range(n)],
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            version=self.version,
        )
        return [samples[start : start + n] for start in range(0, len(samples), n)]

    def close(self) -> None:
        """Let go of the policy."""
        self.policy = None
