"""The lesson of policy gradients: rewards of a rollout become advantages of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons.base import Fetch, at_hand
from rlhf_lightning.lessons.experience import Experience, numbers
from rlhf_lightning.lessons.tokens import IntArray, floats
from rlhf_lightning.types import Credit, Episodes, PackedBatch, Ragged, Rolled, RolloutOptions, SampleGroup, ScoredGroup


class CreditLesson:
    """Every response is an episode; the method's credit assignment sees all of them at once.

    Args:
        options: how the method draws and uses responses.
        method: returns the method that is trained; called when a rollout is made.
    """

    kind = "prompt"
    phase = "credit"
    score_name = "reward"

    def __init__(self, options: RolloutOptions, method: Callable[[], Rolled]) -> None:
        self.options, self.method = options, method

    @property
    def needs(self) -> frozenset[str]:
        """Names of the numbers that the method computes of a rollout's tokens."""
        return self.method().required_scores

    @property
    def temperature(self) -> float:
        """Temperature of the method's log-probs."""
        return self.method().temperature

    def prepare(self, prompts: Examples, first: IntArray) -> None:
        """Nothing: advantages are made of rollouts alone."""

    def facts(self, group: SampleGroup) -> dict[str, list[int]]:
        """None: the first samples are trained on, whatever they are."""
        return {}

    def informative(self, number: int, drawn: Sequence[ScoredGroup]) -> list[bool]:
        """With ``dynamic_filter`` groups whose responses differ in reward; else all."""
        return [group.informative or not self.options.dynamic_filter for group in drawn]

    def begin(self, number: int, cursor: int, groups: Sequence[ScoredGroup], fetch: Fetch = at_hand) -> Experience:
        """The first ``keep`` responses of each group; see :meth:`Experience.of`."""
        options = self.options
        fetch(groups, dict.fromkeys(range(len(groups)), range(options.kept)))
        return Experience.of(number, cursor, groups, options.kept, mask_truncated=options.mask_truncated)

    def why_empty(self, groups: Sequence[ScoredGroup]) -> str | None:
        """Responses have tokens unless they are unscored or masked as cut off."""
        scores = [score for group in groups for score in group.score[: self.options.kept]]
        if all(score is None for score in scores):
            return None
        unscored = " or has no score" if None in scores else ""
        return (
            f"every response was cut off{unscored}, and method.rollout.mask_truncated=true: raise "
            "rollout.max_new_tokens"
        )

    def scores(self, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Old, reference and critic numbers, as the method computes them."""
        return self.method().scores(batch)

    def learn(self, learned: Experience, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Add advantages and other numbers of credit assignment to the tokens; return its metrics."""
        credit: Credit = self.method().credit(self.episodes(learned, groups))
        learned.tokens |= {name: values.token.float() for name, values in credit.tokens.items()}
        return credit.metrics

    def episodes(self, learned: Experience, groups: Sequence[ScoredGroup]) -> Episodes:
        """Episodes of a rollout, as credit assignment sees them."""
        slots = learned.slots
        terms = {
            name: torch.tensor([numbers(group.terms[name][:slots]) for group in groups]).flatten()
            for name in sorted(groups[0].terms)
        }
        return Episodes(
            torch.repeat_interleave(torch.arange(len(groups)), slots),
            learned.score,
            learned.truncated,
            torch.from_numpy(learned.lengths),
            {name: learned.ragged(values) for name, values in learned.tokens.items()},
            terms,
            self._baseline(groups),
            _step_reward(learned, groups),
        )

    def _baseline(self, groups: Sequence[ScoredGroup]) -> Tensor | None:
        """Reward of each prompt's response of the second draw, which the samples of the first are compared with."""
        if len(self.options.draws) == 1:
            return None
        return torch.tensor(numbers([group.score[group.of_draw(1)][0] for group in groups]))

    def columns(self, learned: Experience, groups: Sequence[ScoredGroup]) -> dict[int, list[dict[str, Any]]]:
        """The mean advantage of each response that is trained on."""
        advantage = learned.ragged(learned.tokens["advantage"]).mean()
        advantage = advantage.masked_fill(torch.from_numpy(learned.lengths == 0), torch.nan)
        rows = advantage.reshape(len(groups), -1).tolist()
        return {
            group.position: [{"advantage": value, "trained": True} if value == value else {} for value in row]
            for group, row in zip(groups, rows, strict=True)
        }

    def rows(self, learned: Experience, groups: Sequence[ScoredGroup]) -> Iterable[dict[str, Any]]:
        """None: no data set holds advantages."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Empty: every rollout is used once, and statistics of credit assignment are in the method's own buffers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""

    def restore(self, state: Mapping[str, Any]) -> Experience:
        """The rollout that a checkpoint held."""
        return Experience.from_state_dict(state)


def _step_reward(learned: Experience, groups: Sequence[ScoredGroup]) -> Ragged | None:
    if not groups[0].steps:
        return None
    slots, lengths = learned.slots, learned.lengths.tolist()
    rows = [row for group in groups for row in group.steps[:slots]]
    used = [row for row, length in zip(rows, lengths, strict=True) if length]
    return learned.ragged(floats(used))
