"""The round of credit assignment: responses on every process alike, and numbers for each of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lightning.data.batches.loader_position import check_state
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.lessons.tokens import IntArray, TokenRound, examples_of, floats
from rlhf_lightning.types import PackedBatch, RolloutBatch, ScoredGroup, StepTotals


@dataclass
class Experience(TokenRound):
    """The responses of a rollout that are trained on, with numbers for each of their tokens.

    A response that is not trained on (unscored, or cut off where those are masked) is an empty slot: it has no tokens.
    """

    score: Tensor  #: (responses,) nan where there is none
    truncated: Tensor  #: (responses,) cut off at the length limit

    @classmethod
    def of(
        cls,
        number: int,
        cursor: int,
        kept: Sequence[ScoredGroup],
        slots: int,
        *,
        mask_truncated: bool = False,
        everything: bool = False,
    ) -> Experience:
        """Gather the groups of a rollout into columns.

        Args:
            number: of the rollout.
            cursor: position of the next prompt.
            kept: groups to train on.
            slots: of each group the first samples are kept, this many.
            mask_truncated: responses that were cut off are not trained on.
            everything: every response has its tokens, whether it is trained on or not.
        """
        score = torch.tensor([numbers(entry.score[:slots]) for entry in kept], dtype=torch.float32).flatten()
        samples = [sample for entry in kept for sample in entry.group.samples[:slots]]
        truncated = torch.tensor([sample.finish == "length" for sample in samples])
        trained = ~score.isnan() & ~(truncated & mask_truncated) | everything
        ids = [sample.ids if used else [] for sample, used in zip(samples, trained.tolist(), strict=True)]
        examples = examples_of([entry.group for entry in kept], ids, slots)
        index = np.array([entry.group.index for entry in kept], dtype=np.int64)
        experience = cls(number, cursor, examples, index, score=score, truncated=truncated)
        drawn = [s.log_probs if used else [] for s, used in zip(samples, trained.tolist(), strict=True)]
        if all(len(values) == len(tokens) for values, tokens in zip(drawn, ids, strict=True)):
            experience.tokens["rollout_log_probs"] = floats(drawn)
        return experience

    def batch(self, groups: IntArray, totals: StepTotals, step: IntArray | None = None) -> RolloutBatch:
        """Some groups as a micro-batch, with every number that there is of their tokens.

        Args:
            groups: which.
            totals: denominators of the optimiser step.
            step: all groups of the step, whose advantages have moments; None: before there are advantages.
        """
        packed = pack(self.examples.select(groups), totals=totals, indices=self.index[groups])
        layout = {declared.name: getattr(packed, declared.name) for declared in fields(PackedBatch)}
        at = self.token_indices(groups)
        slots = torch.from_numpy((groups[:, None] * self.slots + np.arange(self.slots)).ravel())
        numbers_of_tokens = {
            name: values[at] for name, values in self.tokens.items() if name in RolloutBatch.TOKEN_FIELDS
        }
        return RolloutBatch(
            **layout | numbers_of_tokens,
            score=self.score[slots],
            truncated=self.truncated[slots],
            rollout=self.number,
            advantage_moments=(0.0, 1.0) if step is None else self.moments(step),
        )

    def moments(self, groups: IntArray) -> tuple[float, float]:
        """Mean and standard deviation (biased) of the advantages of some groups' tokens; of none 0 and 1."""
        if "advantage" not in self.tokens:
            return 0.0, 1.0
        values = self.tokens["advantage"][self.token_indices(groups)].double()
        return (float(values.mean()), float(values.std(correction=0))) if len(values) else (0.0, 1.0)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {**super().state_dict(), "score": self.score, "truncated": self.truncated}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Experience:
        """Restore a round from :meth:`state_dict`.

        Raises:
            ValueError: another version wrote it.
        """
        check_state(state, ("score", "truncated"))
        score, truncated = state["score"], state["truncated"]
        return cls(**cls.restored(state), score=score, truncated=truncated)


def numbers(scores: Sequence[float | None]) -> list[float]:
    """Scores with nan for those that are missing."""
    return [torch.nan if score is None else score for score in scores]
