"""The one interface of everything that scores responses, and what calls it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from rlhf_lightning.types import SampleGroup

#: One list a group, one number a response; None: this response cannot be judged.
Scores = list[list[float | None]]
#: Row i, column j: probability that response i beats response j; None where the judge gave no verdict, 1/2 at i = j.
WinMatrix = list[list[float | None]]


@runtime_checkable
class Reward(Protocol):
    """Numbers for responses, higher is better.

    A reward is called with whole groups: every response to a prompt at once, so that a reward may compare them. A group
    has token ids as the policy makes them (a prompt with its chat markup, responses with their EOS), what the engine
    knows of each response, and the columns of the prompt's row in the data. The reward was given the policy's tokenizer
    when it was made: a yaml of the config group ``reward`` is a partial that is completed with ``tokenizer``.

    A reward moves itself to a device, has no gradients, draws no random numbers, and gives the same number however
    groups are batched. Where it cannot judge a response (no gold answer to compare with, a judge that did not reply) it
    gives None, never a guess.

    Further members are optional, each a protocol of this module:

    * ``terms`` and ``combine`` (:class:`ComposedReward`), ``term_names`` (:class:`NamedTerms`);
    * ``weights`` (:class:`WeightedTerms`), and ``costs: frozenset[str]``: which of the terms are costs, where lower is
      better; they are no part of the sum;
    * ``step_reward`` (:class:`StepReward`);
    * ``metrics`` (:class:`CountingReward`);
    * ``check_columns`` (:class:`ColumnReward`), and ``reads_columns: bool``: False where it has ``check_columns`` and
      yet reads no column, see :func:`reads_columns`;
    * ``smallest_group: int``: responses to one prompt that the reward needs at least, see :func:`smallest_group`;
    * ``reads_log_probs: bool``: whether it reads the log-probs of samples, see :func:`reads_log_probs`;
    * ``policy`` (:class:`PolicyReward`), and ``asks_policy: bool``: False where it has ``policy`` and yet asks nothing;
    * ``win_matrix`` (:class:`ComparingReward`);
    * ``roles`` and ``assign`` (:class:`RoleReward`).

    A plain function of texts is made into a reward by :func:`~rlhf_lightning.rewards.as_reward`.
    """

    name: str  #: what its numbers are logged under

    def __call__(self, groups: Sequence[SampleGroup]) -> Scores:
        """One number for each response, or None.

        Args:
            groups: prompts with their responses; groups may differ in size.

        Returns:
            One list a group, one number a response, in the same order.
        """
        ...


@runtime_checkable
class ComposedReward(Protocol):
    """A reward that is made of several terms (:class:`~rlhf_lightning.rewards.Composite`); see :func:`score_groups`."""

    def terms(self, groups: Sequence[SampleGroup]) -> dict[str, Scores]:
        """The parts of the reward by name."""
        ...

    def combine(self, terms: dict[str, Scores]) -> Scores:
        """The reward that some terms make."""
        ...


@runtime_checkable
class NamedTerms(Protocol):
    """A reward of several terms whose names may be known before anything is scored."""

    @property
    def term_names(self) -> frozenset[str] | None:
        """The names of the terms; None: they are not known yet."""
        ...


@runtime_checkable
class WeightedTerms(Protocol):
    """A reward that is a weighted sum of its terms."""

    weights: Mapping[str, float]  #: of each term in the sum, by name


@runtime_checkable
class StepReward(Protocol):
    """A reward that also gives numbers to the steps of a response."""

    def step_reward(self, groups: Sequence[SampleGroup]) -> list[list[list[float]]] | None:
        """One number a response token, nan where no step ends; None: it gives none after all."""
        ...


@runtime_checkable
class CountingReward(Protocol):
    """A reward that counts, such as its failures; see :func:`metrics_of`."""

    def metrics(self) -> Mapping[str, float]:
        """Counts since the last call."""
        ...


@runtime_checkable
class ColumnReward(Protocol):
    """A reward that may read columns of the data."""

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuse data that lacks a column, with a ValueError; called with the columns' names before weights load."""
        ...


@runtime_checkable
class PolicyReward(Protocol):
    """A reward that asks the policy itself."""

    policy: Any  #: set to the module that is trained before each call


@runtime_checkable
class ComparingReward(Protocol):
    """A reward that compares the responses to a prompt; see :func:`~rlhf_lightning.rewards.win_matrices`."""

    name: str  #: what its numbers are logged under

    def win_matrix(self, groups: Sequence[SampleGroup]) -> list[WinMatrix]:
        """Win matrix of each group."""
        ...


@runtime_checkable
class RoleReward(Protocol):
    """A reward that may ask for models of a run with rounds, by name."""

    name: str  #: what its numbers are logged under

    @property
    def roles(self) -> frozenset[str]:
        """Of :data:`~rlhf_lightning.rewards.implicit.ROLES`, assigned before it is called; empty: it names none."""
        ...

    def assign(self, role: str, model: Callable[[], AbstractContextManager[Any]], device: Any) -> None:
        """Give the model of a role; again before each call, since others play it in later rounds.

        Args:
            role: one of ``roles``.
            model: opens what computes packed batches on the device; a collective call where weights are sharded.
            device: of its batches.
        """
        ...


def roles_of(reward: Any) -> frozenset[str]:
    """Models of a run with rounds that a reward names."""
    return reward.roles if isinstance(reward, RoleReward) else frozenset()


def term_names(reward: Any) -> frozenset[str] | None:
    """Names of a reward's terms; None where they are not known before anything is scored."""
    return reward.term_names if isinstance(reward, NamedTerms) else None


def score_groups(reward: Reward, groups: Sequence[SampleGroup]) -> tuple[Scores, dict[str, Scores]]:
    """The reward of every response, and the terms that it is made of.

    Args:
        reward: any reward; one without ``terms`` is its only term.
        groups: prompts with their responses.

    Returns:
        Combined scores, and scores of each term by name before weighting.

    Raises:
        ValueError: the reward returned another number of scores than there are responses, or an infinite one.
    """
    if not isinstance(reward, ComposedReward):
        total = checked(reward.name, reward(groups), groups)
        return total, {reward.name: total}
    terms = {name: checked(name, scores, groups) for name, scores in reward.terms(groups).items()}
    return checked(reward.name, reward.combine(terms), groups), terms


def checked(name: str, scores: Sequence[Sequence[float | None]], groups: Sequence[SampleGroup]) -> Scores:
    """Scores as floats, nan as None, after it was checked that there is one for each response.

    Raises:
        ValueError: another number of scores than responses, or an infinite one; the message names reward and row.
    """
    if len(scores) != len(groups):
        raise ValueError(f"reward {name!r} returned scores of {len(scores)} groups for {len(groups)}")
    checked_scores: Scores = []
    for group, row in zip(groups, scores, strict=True):
        if len(row) != len(group.samples):
            raise ValueError(
                f"reward {name!r} returned {len(row)} scores for {len(group.samples)} responses to {_location(group)}"
            )
        values = [None if score is None else float(score) for score in row]
        if any(value is not None and math.isinf(value) for value in values):
            raise ValueError(f"reward {name!r} returned an infinite score for {_location(group)}: {values}")
        checked_scores.append([None if value is None or math.isnan(value) else value for value in values])
    return checked_scores


def reads_columns(reward: Any) -> bool:
    """Check whether a reward reads columns: it has ``check_columns``, and ``reads_columns`` is not False."""
    return isinstance(reward, ColumnReward) and bool(getattr(reward, "reads_columns", True))


def smallest_group(reward: Any) -> int:
    """Minimum number of responses to one prompt that a reward needs: 2 if it compares them, else 1."""
    return int(getattr(reward, "smallest_group", 1))


def asks_policy(reward: Any) -> bool:
    """Check whether a reward asks the policy itself: it has ``policy``, and ``asks_policy`` is not False."""
    return isinstance(reward, PolicyReward) and bool(getattr(reward, "asks_policy", True))


def reads_log_probs(reward: Any) -> bool:
    """Check whether a reward reads the log-probs that responses were drawn with; False where it says nothing."""
    return bool(getattr(reward, "reads_log_probs", False))


def metrics_of(reward: Any) -> dict[str, float]:
    """Counts of a reward since the last call, such as failures; empty for a reward without counts."""
    return dict(reward.metrics()) if isinstance(reward, CountingReward) else {}


def introduce(reward: Any, module: Any) -> None:
    """Give a reward that asks the policy the module that has it; any other reward is left as it is.

    Args:
        reward: what scores, or None.
        module: with ``policy`` and ``sample``, as methods have them.
    """
    if isinstance(reward, PolicyReward):
        reward.policy = module


def evaluated(reward: Any, groups: Sequence[SampleGroup], module: Any) -> Scores:
    """Scores of a reward that may be the one that trains: what it counts here is no part of what it logs there.

    A reward that compares responses has nothing to say of a single one. It is asked all the same, also without any
    group: where the policy itself scores and its weights are shared, every process has to take part.

    Args:
        reward: any reward.
        groups: prompts with their responses.
        module: whose policy the reward may ask.
    """
    introduce(reward, module)
    large = [len(group.samples) >= smallest_group(reward) for group in groups]
    scores = iter(score_groups(reward, [group for group, asked in zip(groups, large, strict=True) if asked])[0])
    metrics_of(reward)
    return [next(scores) if asked else [None] * len(group.samples) for group, asked in zip(groups, large, strict=True)]


def why_unscored(counts: Mapping[str, float]) -> str:
    """Advice if a judge gave no score at all; empty if its counts do not tell the reason.

    Args:
        counts: of :func:`metrics_of`; those of a term carry its name before a slash.
    """
    shares = {name.rpartition("/")[2]: value for name, value in counts.items() if value}
    if "parse_failures" in shares:
        return (
            f"; no verdict could be read in {shares['parse_failures']:.0%} of the judge's replies: raise "
            "reward.writing.max_tokens if it was cut off, ask for a plainer verdict in reward.question, or say in "
            "reward.pattern how to find it"
        )
    if "unanswered" in shares:
        return f"; {shares['unanswered']:.0%} of the judge's questions got no reply: check the server's log"
    return ""


def _location(group: SampleGroup) -> str:
    return f"the prompt at {group.row or group.index}"
