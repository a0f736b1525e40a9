"""The evaluator's part of the tiny world: the gold reward, the base, and responses that no method has seen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.ops.divergence import Predictions, divergence
from rlhf_lightning.types import Example, PackedBatch
from rlhf_lightning.world import grammar
from rlhf_lightning.world.base import TinyWorld
from rlhf_lightning.world.gold import WEIGHTS, Gold, judge
from rlhf_lightning.world.grammar import Prompt
from rlhf_lightning.world.samples import MAX_NEW_TOKENS, mean_gold, samples
from rlhf_lightning.world.tokenizer import encode, words_of

if TYPE_CHECKING:
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.backbone import Backbone


class TinyEvaluator:
    """The tiny world as ``callbacks.GoldReward`` uses it, on prompts held out of training.

    Args:
        base: the base model; None: the default base of ``model=tiny``.
        responses: held-out responses of the base for each prompt, to calibrate implicit rewards on, at most 32.
        answers: old name of ``responses``.
    """

    max_new_tokens = MAX_NEW_TOKENS

    def __init__(self, base: TinyWorld | None = None, responses: int = 16, answers: int | None = None) -> None:
        if answers is not None:
            warnings.warn("TinyEvaluator(answers=...) is now responses=...", DeprecationWarning, stacklevel=2)
            responses = answers
        self.base, self.responses = base or TinyWorld(), responses
        self._prompts: dict[tuple[int, ...], Prompt] = {}
        self._actor: Actor | None = None

    def prompts(self) -> list[list[int]]:
        """Token ids of the held-out prompts, always in the same order."""
        return [encode(prompt.text) for prompt in grammar.prompts("validation")]

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """Find the question of a prompt's token ids.

        Raises:
            ValueError: the prompt does not belong to the tiny world.
        """
        if not self.knows(ids):
            raise ValueError(f"the gold reward knows the tiny world's prompts only, not the ids {list(ids)[:16]}")
        return self._prompts[tuple(ids)]

    def knows(self, ids: Sequence[int]) -> bool:
        """Check if a prompt belongs to the tiny world."""
        if not self._prompts:
            self._prompts = {tuple(encode(prompt.text)): prompt for prompt in grammar.prompts()}
        return tuple(ids) in self._prompts

    def gold(self, prompt: Sequence[int], response: Sequence[int]) -> Gold:
        """Judge a response.

        Raises:
            ValueError: the prompt does not belong to the tiny world.
        """
        return judge(self.prompt(prompt), words_of(list(response)))

    def scores(self, prompt: Sequence[int], response: Sequence[int]) -> dict[str, float]:
        """``reward`` in points, and each feature that applies, by name."""
        gold = self.gold(prompt, response)
        features = {name: value for name, value in gold.features.items() if value is not None}
        return {"reward": gold.reward, **features}

    def features(self) -> list[str]:
        """Names of the features."""
        return list(WEIGHTS)

    def base_reward(self) -> float:
        """Mean gold reward of the base on the held-out prompts, in points."""
        return mean_gold(self.base, "validation")

    @torch.no_grad()
    def divergence(self, policy: Backbone, batch: PackedBatch) -> torch.Tensor:
        """Compute KL(policy || base) of each response from whole distributions, summed over its tokens, in nats.

        Over responses sampled by the policy, its mean is the KL of the two models, with a smaller variance than the
        mean log-ratio, since only the preceding tokens are random.

        Args:
            policy: a language model with the tiny world's vocabulary.
            batch: prompts with samples of the policy, on the policy's device.

        Returns:
            ``[responses]``, on the CPU.
        """
        if self._actor is None:
            from rlhf_lightning.models.actor import Actor

            self._actor = Actor(self.base.load()).requires_grad_(False)
        policy_predictions = _predictions(policy, batch)
        base_predictions = _predictions(self._actor.to(batch.ids.device), batch)
        return batch.ragged(divergence(policy_predictions, base_predictions, "reverse_kl")).sum().cpu()

    def held_out(self) -> tuple[PackedBatch, list[list[float]], list[list[float]]]:
        """Responses of the base to the held-out prompts.

        Returns:
            One batch with a group for each prompt; the responses' gold rewards, in points; their log-probs under the
            base, in nats; both by prompt.
        """
        groups = {prompt: group[: self.responses] for prompt, group in samples(self.base, "validation").items()}
        examples = [Example(encode(p.text), [list(response.ids) for response in group]) for p, group in groups.items()]
        gold = [[response.gold.reward for response in group] for group in groups.values()]
        return pack(examples), gold, [[response.log_prob for response in group] for group in groups.values()]

    def batch(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> PackedBatch:
        """Pack prompts with several responses each into one batch."""
        return pack([Example(list(p), [list(r) for r in rs]) for p, rs in zip(prompts, responses, strict=True)])


def _predictions(model: Backbone, batch: PackedBatch) -> Predictions:
    hidden = model.hidden(batch, batch.source, batch.sequence)
    return Predictions(hidden.float(), weight=model.base.get_output_embeddings().weight.float())
