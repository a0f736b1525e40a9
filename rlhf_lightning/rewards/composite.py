"""Several rewards as one: weighted, clipped, normalised, each logged by name."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

from rlhf_lightning.rewards.base import (
    ColumnReward,
    ComposedReward,
    RoleReward,
    Scores,
    StepReward,
    asks_policy,
    introduce,
    metrics_of,
    reads_columns,
    reads_log_probs,
    roles_of,
    score_groups,
    smallest_group,
    term_names,
)
from rlhf_lightning.rewards.function import as_reward
from rlhf_lightning.types import SampleGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Added to the standard deviation of a group, as GRPO does (TRL 1.16).
EPSILON = 1e-4


class Composite:
    r"""Weighted sum of terms, each of which is logged by its name.

    .. math:: R(y) = \sum_k w_k\, n_k\big(\mathrm{clip}(r_k(y), l_k, h_k)\big)

    where n_k is nothing, or takes off the mean of the term over the group and divides by its standard deviation.
    Terms are logged as they were scored, before clip, normalisation and weight.

    A term of weight 0 is logged only. A term among ``costs`` is no part of the sum either: it is handed on as a cost,
    which ``method=ppo_lagrangian`` keeps below its limit. Composed on the command line each term is a file of the
    config group: ``reward=composite +reward@reward.terms.right=math +reward@reward.terms.short=length
    reward.terms.short.target=100 reward.weights.short=0.2``.

    Source: R_theta - alpha * P_clf of "Unveiling the Implicit Toxicity in Large Language Models", arXiv:2311.17391, is
    such a sum; ``normalize=group`` sums what "GDPO", arXiv:2601.05242, calls decoupled normalisation.
    Defaults: every weight is 1; nothing is clipped or normalised.

    Args:
        tokenizer: the policy's; given to the terms.
        terms: rewards by name: rewards, partials of rewards as a yaml gives them, or functions of texts.
        weights: factors by name; a term that is not named has 1.
        clip: lowest and highest value of a term by name, in its own units; null leaves one side open.
        normalize: ``none``, or ``group``: each weighted term has mean 0 and standard deviation 1 in its group.
        costs: names of the terms that are costs.
        missing: where a weighted term has no score for a response, the others are summed (``skip``) or the response
            has no reward (``none``). Without any score it has none in either case.
        name: what the sum is logged under.

    Raises:
        ValueError: no terms, an option for a term that is not there, a cost with a weight, an empty clip range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        terms: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        clip: Mapping[str, Sequence[float | None]] | None = None,
        normalize: Literal["none", "group"] = "none",
        costs: Collection[str] = (),
        missing: Literal["skip", "none"] = "skip",
        name: str = "composite",
    ) -> None:
        self.name, self.normalize, self.missing = name, normalize, missing
        self.costs = frozenset(costs)
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in terms if name not in self.costs}
        self.clip = {name: tuple(ends) for name, ends in (clip or {}).items() if ends is not None}
        # Before any term is made: one of them may load a model.
        _check(terms, weights or {}, self.clip, self.costs)
        for option, value, choices in (
            ("normalize", normalize, ("none", "group")),
            ("missing", missing, ("skip", "none")),
        ):
            if value not in choices:
                raise ValueError(f"reward.{option}={value!r} is neither {' nor '.join(choices)}")
        self.rewards = {name: as_reward(term, tokenizer, name) for name, term in terms.items()}

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """See :class:`~rlhf_lightning.rewards.base.Reward`."""
        return self.combine(self.terms(groups))

    def terms(self, groups: Sequence[SampleGroup]) -> dict[str, Scores]:
        """Scores of each term by name, as it gives them; parts of a term that is itself composed as ``term/part``."""
        scores_by_name: dict[str, Scores] = {}
        for name, reward in self.rewards.items():
            scores_by_name[name], parts = score_groups(reward, groups)
            if isinstance(reward, ComposedReward):
                scores_by_name |= {f"{name}/{part}": scores for part, scores in parts.items()}
        return scores_by_name

    @property
    def term_names(self) -> frozenset[str] | None:
        """Names under which :meth:`terms` gives scores; None where a term says only when it scores."""
        names = set(self.rewards)
        for name, reward in self.rewards.items():
            if isinstance(reward, ComposedReward):
                parts = term_names(reward)
                if parts is None:
                    return None
                names |= {f"{name}/{part}" for part in parts}
        return frozenset(names)

    def combine(self, terms: Mapping[str, Scores]) -> Scores:
        """The weighted sum of scored terms.

        Args:
            terms: as :meth:`terms` gives them.
        """
        weighted = {name: self._weighted(name, terms[name]) for name, weight in self.weights.items() if weight}
        if not weighted:
            first = next(iter(terms.values()))
            return [[0.0] * len(group) for group in first]
        return [
            [self._sum(values) for values in zip(*rows, strict=True)] for rows in zip(*weighted.values(), strict=True)
        ]

    def metrics(self) -> dict[str, float]:
        """Counts of the terms, by ``term/metric``."""
        return {
            f"{name}/{key}": value for name, term in self.rewards.items() for key, value in metrics_of(term).items()
        }

    def check_columns(self, columns: Collection[str]) -> None:
        """Let the terms that read columns of the data check that they are there."""
        for term in self.rewards.values():
            if isinstance(term, ColumnReward):
                term.check_columns(columns)

    @property
    def reads_columns(self) -> bool:
        """True if any term reads columns of the data."""
        return any(map(reads_columns, self.rewards.values()))

    @property
    def smallest_group(self) -> int:
        """Responses to one prompt that every term can score."""
        return max(map(smallest_group, self.rewards.values()))

    @property
    def reads_log_probs(self) -> bool:
        """True if any term reads the log-probs of samples."""
        return any(map(reads_log_probs, self.rewards.values()))

    @property
    def asks_policy(self) -> bool:
        """True if any term asks the policy."""
        return bool(self._asking())

    @property
    def policy(self) -> Any:
        """The module that is trained; terms that have a place for it get it."""
        return next((term.policy for term in self._asking()), None)

    @policy.setter
    def policy(self, policy: Any) -> None:
        for term in self.rewards.values():
            introduce(term, policy)

    @property
    def roles(self) -> frozenset[str]:
        """Models of a run with rounds that any term names."""
        return frozenset().union(*map(roles_of, self.rewards.values()))

    def assign(self, role: str, model: Callable[[], AbstractContextManager[Any]], device: Any) -> None:
        """Give a model to the terms that name its role."""
        for term in self.rewards.values():
            if isinstance(term, RoleReward) and role in term.roles:
                term.assign(role, model, device)

    def step_reward(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]] | None:
        """Rewards of steps, of the one term that gives them, times its weight; None where none does.

        Raises:
            ValueError: several terms give rewards of steps.
        """
        giving = {
            name: term for name, term in self.rewards.items() if isinstance(term, StepReward) and self.weights.get(name)
        }
        if len(giving) > 1:
            raise ValueError(f"rewards of steps come from one term, not from {[*giving]}: give the others weight 0")
        for name, term in giving.items():
            step_scores = term.step_reward(groups)
            weight = self.weights[name]
            return (
                None
                if step_scores is None
                else [[[weight * value for value in row] for row in group] for group in step_scores]
            )
        return None

    def _asking(self) -> list[Any]:
        return [term for term in self.rewards.values() if asks_policy(term)]

    def _weighted(self, name: str, scores: Scores) -> Scores:
        low, high = self.clip.get(name, (None, None))
        clipped = [_applied(group, lambda value: _between(value, low, high)) for group in scores]
        if self.normalize == "group":
            clipped = [_normalized(group) for group in clipped]
        return [_applied(group, lambda value: self.weights[name] * value) for group in clipped]

    def _sum(self, values: Sequence[float | None]) -> float | None:
        present = [value for value in values if value is not None]
        if not present or (self.missing == "none" and len(present) < len(values)):
            return None
        return sum(present)


def _applied(group: Sequence[float | None], function: Callable[[float], float]) -> list[float | None]:
    return [None if value is None else function(value) for value in group]


def _between(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def _normalized(group: Sequence[float | None]) -> list[float | None]:
    """Mean 0 and standard deviation 1 (unbiased) of the scores that are there; 0 where there is one."""
    present = [value for value in group if value is not None]
    if not present:
        return list(group)
    mean, spread = statistics.fmean(present), statistics.stdev(present) if len(present) > 1 else 0.0
    return _applied(group, lambda value: (value - mean) / (spread + EPSILON))


def _check(
    terms: Mapping[str, Any],
    weights: Mapping[str, float],
    clip: Mapping[str, Sequence[float | None]],
    costs: frozenset[str],
) -> None:
    if not terms:
        raise ValueError("reward=composite has no terms: +reward@reward.terms.NAME=FILE adds one of conf/reward")
    for option, names in (("weights", set(weights)), ("clip", set(clip)), ("costs", costs)):
        if unknown := sorted(set(names) - set(terms)):
            raise ValueError(f"reward.{option} names {unknown}, but the terms are {sorted(terms)}")
    if weighed := sorted(costs & {name for name, weight in weights.items() if weight}):
        raise ValueError(f"reward.costs={weighed} are no part of the sum: take them out of reward.weights")
    for name, ends in clip.items():
        if len(ends) != 2 or (None not in ends and not ends[0] < ends[1]):  # type: ignore[operator]
            raise ValueError(f"reward.clip.{name}={list(ends)} must be [lowest, highest]")
