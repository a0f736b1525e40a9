"""Reward and cost models from comparisons: pairs, ranked lists, pairs with safety labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.methods.optional import given
from rlhf_lightning.methods.scoring import ScoringModule
from rlhf_lightning.methods.slots import by_group
from rlhf_lightning.types import (
    GroupLoss,
    PackedBatch,
    PreferenceBatch,
    PreferenceLoss,
    RankedBatch,
    SafetyBatch,
    SequenceLogProbs,
)

if TYPE_CHECKING:
    from rlhf_lightning.models.roles.models import Models


class RewardModel(ScoringModule[PreferenceBatch]):
    """A reward model from pairs, with a loss of ``rlhf_lightning.losses.reward`` on a row of two rewards.

    A loss may ask for ``reward``, ``margin`` and ``policy_sample`` (of the data), ``policy`` (log-probs, from the same
    pass), ``length``, ``overlap`` (of the rows of a head with two outputs), ``token_reward`` and ``prefix``.

    Logged as for policies: ``reward/chosen``, ``reward/rejected``, ``reward/margin``, ``reward/accuracy``.

    Args: see ``ScoringModule``.
    """

    kind: ClassVar[str] = "preference"
    provides: ClassVar[frozenset[str]] = frozenset(
        {"reward", "margin", "policy_sample", "policy", "length", "overlap", "token_reward", "prefix"}
    )

    def configure_model(self) -> None:
        """Load the models; refuse a head of several outputs where the loss compares single rewards."""
        super().configure_model()
        if self.policy.outputs != 1 and "overlap" not in self.needs:
            raise ValueError(
                f"the loss compares one reward a response: method.head.outputs={self.policy.outputs}, not 1"
            )

    def inputs(
        self, batch: PreferenceBatch, scores: Tensor, log_probs: SequenceLogProbs | None
    ) -> dict[str, Callable[[], Any]]:
        """See ``ScoringModule``."""
        return {
            "reward": lambda: by_group(scores, batch),
            "margin": lambda: batch.margin,
            "policy_sample": lambda: by_group(given(batch, "policy_sample"), batch),
            "policy": lambda: None if log_probs is None else batch.pair(log_probs),
            "length": lambda: by_group(whole_lengths(batch), batch),
            "overlap": lambda: self.policy.overlap(),
            "token_reward": lambda: batch.pair(batch.ragged(scores)),
            "prefix": lambda: shared_prefix(batch),
        }

    def report(self, batch: PreferenceBatch, result: PreferenceLoss) -> dict[str, Tensor]:
        """See ``ScoringModule``."""
        length = by_group(lengths(batch), batch)
        return {
            "chosen_reward": result.chosen_reward,
            "rejected_reward": result.rejected_reward,
            "chosen_length": length[:, 0],
            "rejected_length": length[:, 1],
            "response_reward": torch.cat([result.chosen_reward, result.rejected_reward]),
            "response_length": length.T.flatten(),
        }


class CostModel(RewardModel):
    """A cost model from pairs whose first response is the safer one, each response labelled safe or unsafe.

    A loss may ask for ``safe`` and for the inputs of a reward model. The reward that is logged is the negative cost.

    Args: see ``ScoringModule``.
    """

    kind: ClassVar[str] = "safety"
    provides: ClassVar[frozenset[str]] = RewardModel.provides | {"safe"}
    sign: ClassVar[int] = -1

    def inputs(
        self, batch: PreferenceBatch, scores: Tensor, log_probs: SequenceLogProbs | None
    ) -> dict[str, Callable[[], Any]]:
        """See ``ScoringModule``."""
        return super().inputs(batch, scores, log_probs) | {"safe": lambda: by_group(_safe(batch), batch)}


class RankedRewardModel(ScoringModule[RankedBatch]):
    """A reward model from ranked lists, with a loss of ``rlhf_lightning.losses.reward`` on a row of K rewards.

    A loss may ask for ``reward`` and ``score`` (of the data; nan in an empty slot).

    Args: see ``ScoringModule``.
    """

    kind: ClassVar[str] = "ranked"
    provides: ClassVar[frozenset[str]] = frozenset({"reward", "score"})

    def _check(self, models: Callable[..., Models]) -> None:
        super()._check(models)
        if "score" not in self.needs:
            raise ValueError(
                "method RankedRewardModel learns from ranked lists, and this loss does not ask for scores: choose "
                "k_wise or best_of_k, or train on pairs with method=bradley_terry"
            )

    def inputs(
        self, batch: RankedBatch, scores: Tensor, log_probs: SequenceLogProbs | None
    ) -> dict[str, Callable[[], Any]]:
        """See ``ScoringModule``."""
        return {"reward": lambda: by_group(scores, batch), "score": lambda: by_group(batch.score, batch)}

    def report(self, batch: RankedBatch, result: GroupLoss) -> dict[str, Tensor]:
        """See ``ScoringModule``."""
        return {
            "response_reward": batch.of_present(result.reward),
            "response_length": batch.of_present(lengths(batch)),
        }


def lengths(batch: PackedBatch) -> Tensor:
    """Scored tokens of each response, float32."""
    return batch.ragged(torch.ones_like(batch.target, dtype=torch.float32)).length


def whole_lengths(batch: PackedBatch) -> Tensor:
    """Tokens of each response and its prompt together, float32."""
    prompt, response = (span[:, 1] - span[:, 0] for span in (batch.prompt_span, batch.response_span))
    return (prompt[batch.parent] + response).float()


def shared_prefix(batch: PackedBatch) -> Tensor:
    """Number of scored tokens that both responses of each pair share before the first that differs, ``[pairs]``."""
    count, ids = len(batch), batch.ids[batch.target]
    width = max(batch.host.response_tokens)
    table = ids.new_full((len(batch.response_span), width + 1), -1)
    table[batch.sequence, batch.ragged(ids.float()).offset] = ids
    table = table.view(count, 2, width + 1)
    equal = (table[:, 0] == table[:, 1]) & (table[:, 0] >= 0)
    return equal.long().cumprod(1).sum(1)


def _safe(batch: PreferenceBatch) -> Tensor:
    if not isinstance(batch, SafetyBatch):
        raise ValueError("the loss needs a safety label of each response: use data of the kind safety")
    return batch.safe
