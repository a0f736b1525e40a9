"""Interfaces of a lesson and a round for the loop: samples and scores in, batches of the method's kind out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons.tokens import IntArray
from rlhf_lightning.types import PackedBatch, RolloutOptions, SampleGroup, ScoredGroup, StepTotals

#: Completes groups, in place, with tokens and log-probs of samples that other processes drew; a collective call. It is
#: given all groups, and by the number of a group the samples that are needed; the group's prompt comes along.
Fetch = Callable[[Sequence[ScoredGroup], Mapping[int, Collection[int]]], None]


def at_hand(groups: Sequence[ScoredGroup], wanted: Mapping[int, Collection[int]]) -> None:
    """Fetch nothing: one process has drawn everything."""


class Round(Protocol):
    """Groups to train on, the same on every process, with numbers for each of their tokens."""

    number: int  #: of the rollout, from 0
    cursor: int  #: position of the next prompt in the stream
    examples: Examples  #: the groups, prompts with their kept responses
    #: by name, one number for every trained token in the order of the responses, float32
    tokens: dict[str, Tensor]
    metrics: dict[str, float]  #: logged with its first step

    @property
    def parts(self) -> Sequence[Round]:
        """The round itself, and the rows that its steps bring in addition to its groups: all that is scored."""
        ...

    @property
    def slots(self) -> int:
        """Responses of a group."""
        ...

    @property
    def lengths(self) -> IntArray:
        """Trained tokens of each response, (responses,)."""
        ...

    def batch(self, groups: IntArray, totals: StepTotals, step: IntArray | None = None) -> PackedBatch:
        """Some groups as a micro-batch, with the numbers that there are of their tokens.

        Args:
            groups: which.
            totals: denominators of the optimiser step.
            step: all groups of the step; None: the batch is scored, not trained on.
        """
        ...

    def opening(self, batch: PackedBatch, shares: Sequence[IntArray], step: IntArray) -> PackedBatch:
        """The first micro-batch of a step, with what it brings for the whole of it.

        Args:
            batch: of :meth:`batch`.
            shares: groups of each of this process's micro-batches of the step.
            step: all groups of the step.
        """
        ...

    def scatter(self, by_name: Mapping[str, list[tuple[IntArray, Tensor]]]) -> dict[str, Tensor]:
        """Put numbers that came batch by batch, each with its groups, into the order of the responses."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, for a checkpoint within the round."""
        ...


class Lesson(Protocol):
    """Make training groups of a round's samples and scores; called on every process with the same groups.

    Scores, lengths and facts of all groups are there, tokens of those that this process drew, and what was fetched.
    """

    @property
    def kind(self) -> str:
        """Kind of the batches that it gives."""
        ...

    @property
    def phase(self) -> str:
        """Name that its time is logged under."""
        ...

    @property
    def score_name(self) -> str:
        """Name that scores are logged under: ``reward``, or ``score`` where that means implicit rewards."""
        ...

    @property
    def options(self) -> RolloutOptions:
        """Options of drawing and using responses."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Names of the numbers that :meth:`scores` computes of a round's tokens; empty: it is not called."""
        ...

    @property
    def temperature(self) -> float:
        """Temperature at which :meth:`scores` computes log-probs."""
        ...

    def prepare(self, prompts: Examples, first: IntArray) -> None:
        """Read the other data that the lesson needs, and check it before weights load.

        Args:
            prompts: the data set.
            first: rows of the first round.

        Raises:
            ValueError: the data has too little of it.
        """
        ...

    def facts(self, group: SampleGroup) -> dict[str, list[int]]:
        """Numbers that the choice of samples reads of their tokens and texts, by name, one a sample."""
        ...

    def informative(self, number: int, drawn: Sequence[ScoredGroup]) -> list[bool]:
        """Return whether each group teaches anything; others are drawn to replace those that do not.

        Args:
            number: of the round.
            drawn: all groups of the round so far.
        """
        ...

    def begin(self, number: int, cursor: int, groups: Sequence[ScoredGroup], fetch: Fetch = at_hand) -> Round:
        """Groups to train on; a round without any scored token teaches nothing and is skipped. A collective call.

        Args:
            number: of the round.
            cursor: position of the next prompt in the stream.
            groups: that the round is made of.
            fetch: brings the tokens of what is trained on.
        """
        ...

    def why_empty(self, groups: Sequence[ScoredGroup]) -> str | None:
        """Reason why a round of some groups has nothing to train on, and what to change; None: nothing was scored."""
        ...

    def scores(self, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Numbers that :attr:`needs` names, one a response token in the order of the batch; a collective call."""
        ...

    def learn(self, learned: Any, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """Give a round the numbers that steps read, equally on every process; what to log of it by name.

        Args:
            learned: of :meth:`begin`, with the numbers of :meth:`scores`.
            groups: that it was made of.
        """
        ...

    def columns(self, learned: Any, groups: Sequence[ScoredGroup]) -> dict[int, list[dict[str, Any]]]:
        """Use of each sample, for the rollout's file: by the position of the prompt, one row a sample."""
        ...

    def rows(self, learned: Any, groups: Sequence[ScoredGroup]) -> Iterable[dict[str, Any]]:
        """The groups of the round as rows of a data set; none where advantages are learned from."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """State of earlier rounds that later ones need, for a checkpoint; plain containers and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        ...

    def restore(self, state: Mapping[str, Any]) -> Round:
        """The round that a checkpoint held.

        Raises:
            ValueError: another version wrote the state.
        """
        ...
