"""Rollouts by transformers, in the process that trains the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from rlhf_lightning.models.decoding.generation import Guide, Mixed, sample
from rlhf_lightning.models.export.cast_copy import CastCopy
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.roles.reference import AdapterDisabled, FrozenCopy
from rlhf_lightning.rollout.device_defaults import copy_dtype, rows_together
from rlhf_lightning.types import Sample, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.adapters.lora import Adapter
    from rlhf_lightning.models.guidance import Guidance


class TransformersEngine:
    """Samples from the live policy, or from a copy of it in another dtype that each sync refreshes.

    Each process draws for its own prompts. Sharded weights are gathered for the length of a call, or of a sync.

    Args:
        tokenizer: not used; the model knows which tokens end a response.
        max_new_tokens: most tokens of a response, its EOS included.
        min_new_tokens: tokens before which a response cannot end.
        batch_size: most responses decoded together; null: 64 on a CPU, 256 on another device.
        batch_tokens: most tokens of a batch with its prompts, were all responses as long as they may be; null: any.
        dtype: null samples from the trainer's own weights; ``auto`` does so on a CPU, and on another device from a
            bfloat16 copy of float32 weights; ``bfloat16`` from a copy in that dtype, adapter merged. It
            takes half as much memory as float32 weights, and its samples are of a slightly other policy. The reference
            is sampled in its own dtype.
        max_gap: largest mean difference from the trainer's log-probs at which a run continues, in nats a token;
            null: any.

    Raises:
        ValueError: an option is out of range.
    """

    name = "transformers"
    exact = True
    frozen = False
    sources = frozenset({"policy", "reference", "mixture"})

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        batch_size: int | None = None,
        batch_tokens: int | None = 65536,
        dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = "auto",
        max_gap: float | None = 0.2,
    ) -> None:
        Sampling(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)  # checks them
        if (batch_size is not None and batch_size < 1) or (batch_tokens is not None and batch_tokens < 1):
            raise ValueError(f"rollout.batch_size={batch_size} and batch_tokens={batch_tokens} must be at least 1")
        if dtype not in (None, "auto", "bfloat16", "float16", "float32"):
            raise ValueError(
                f"rollout.dtype={dtype} must be auto, bfloat16, float16 or float32, or null for the trainer's own"
            )
        if max_gap is not None and max_gap <= 0:
            raise ValueError(f"rollout.max_gap={max_gap} must be positive, or null for no bound")
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        self.batch_size, self.batch_tokens, self.max_gap = batch_size, batch_tokens, max_gap
        self._auto = dtype == "auto"
        #: Of the copy; with ``auto`` known at the first sync.
        self.dtype = None if dtype in (None, "auto") else cast("torch.dtype", getattr(torch, dtype))
        self.policy: Actor | None = None
        self.reference: FrozenCopy | AdapterDisabled | None = None
        self.guidance: Guidance | None = None
        self.version = 0
        self._copy: CastCopy | None = None

    def check_adapter(self, adapter: Adapter | None) -> None:
        """Accept any policy: it is sampled from itself."""

    def sync(self, policy: Actor, version: int) -> None:
        """Sample from this actor, as it is at each call; with a ``dtype`` as it is now.

        Raises:
            ValueError: a ``dtype`` was set and the actor's base is quantised.
        """
        self._choose(policy)
        if self.dtype is not None:
            if self._copy is None or policy is not self.policy:
                self._copy = CastCopy(policy, self.dtype)
            self._copy.refresh(policy)
        self.policy, self.version = policy, version

    def _choose(self, policy: Actor) -> None:
        """Decide what was left to the device, the first time."""
        kind = transformers_model(policy).device.type
        if self.batch_size is None:
            self.batch_size = rows_together(kind)
        if self._auto:
            self._auto, self.dtype = False, copy_dtype(policy, kind)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Sample]]:
        """Draw ``n`` responses to each prompt; a collective call.

        Raises:
            ValueError: no policy was given yet, ``n`` is out of range, a prompt is empty, or seeds are missing.
        """
        if self.policy is None or self.batch_size is None:
            raise ValueError("the engine has no policy yet: call sync(policy, version) before generate")
        if n < 1:
            raise ValueError(f"n={n} samples a prompt must be at least 1")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        actor, options = self._source(sampling)
        samples = sample(
            actor,
            [prompt for prompt in prompts for _ in range(n)],
            sampling,
            streams=[(seed, number) for seed in seeds for number in range(n)],
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            version=self.version,
            **options,
        )
        return [samples[start : start + n] for start in range(0, len(samples), n)]

    def hold(self, reference: FrozenCopy | AdapterDisabled) -> None:
        """Draw from this reference, as it is at each call, where a sampling asks for it.

        Raises:
            ValueError: it is no model of its own.
        """
        if not isinstance(reference, (FrozenCopy, AdapterDisabled)):
            kind = "none" if reference is None else reference.kind
            raise ValueError(
                f"responses are drawn from the reference, and reference={kind} has no weights: choose "
                "reference=frozen, or reference=adapter_off with an adapter"
            )
        self.reference = reference

    def guide(self, guidance: Guidance) -> None:
        """Let this decide on tokens too where a sampling asks for it.

        Log-probs are then not the policy's, so ``max_gap`` bounds nothing.
        """
        self.guidance, self.max_gap = guidance, None

    def _source(self, sampling: Sampling) -> tuple[Actor | PreTrainedModel, dict[str, Any]]:
        """The model that a sampling draws from, and how."""
        assert self.policy is not None
        policy = self.policy if self._copy is None else self._copy.model
        if sampling.source == "policy":
            if self.guidance is None or not sampling.guided:
                return policy, {}
            return policy, {"guide": self.guidance.guide(self.policy)}
        if self.reference is None:
            raise ValueError("the engine has no reference yet: call hold(reference) before generate")
        adapted = isinstance(self.reference, FrozenCopy)
        actor = cast("Actor", self.reference.actor if isinstance(self.reference, FrozenCopy) else self.policy)
        if sampling.source == "reference":
            return actor, {"adapter": adapted}
        return policy, {"guide": Guide(1 - sampling.mix, (Mixed(actor, sampling.mix, adapter=adapted),))}

    def close(self) -> None:
        """Let go of the models."""
        self.policy = self._copy = self.reference = self.guidance = None
