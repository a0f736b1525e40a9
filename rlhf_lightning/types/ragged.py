"""Numbers of several responses without padding: what models give to losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.ops.divergence import Predictions
from rlhf_lightning.ops.segments import segment_mean, segment_sum
from rlhf_lightning.ops.transfer import positions


class StepTotals(NamedTuple):
    """Contents of the whole optimiser step, over every micro-batch and every process.

    The loader plans a step before it yields the step's first micro-batch, so denominators are exact and a run does not
    depend on how a step was cut: ``loss = sum(local per-group losses) / groups * micro_batches``; Lightning's division
    by ``accumulate_grad_batches`` and the mean over processes then cancel ``micro_batches``.
    """

    groups: int  #: groups in the step
    slot_tokens: tuple[int, ...]  #: scored tokens in the step by slot: (chosen, rejected), or one number for K = 1
    micro_batches: int = 1  #: accumulate_grad_batches * processes

    def mean_length(self, slot: int | None = None) -> float:
        """Mean scored tokens of a response over the whole step, of one slot or of all."""
        if slot is None:
            return sum(self.slot_tokens) / (self.groups * len(self.slot_tokens))
        return self.slot_tokens[slot] / self.groups


@dataclass
class Ragged:
    """One number for every scored token of several responses, without padding.

    A sum or mean over tokens is always explicit: ``values.sum()`` or ``values.mean()``.
    """

    token: Float[Tensor, " response_tokens"]
    sequence: Int[Tensor, " response_tokens"]  #: which response a token belongs to: 0 .. count - 1, never decreasing
    count: int
    #: Mean length over the optimiser step, so that ``(x.sum() / x.step_length).mean()`` is the step's token mean.
    #: None: these responses are the whole step.
    mean_length: float | None = None

    @property
    def length(self) -> Float[Tensor, " responses"]:
        """Scored tokens of each response, as float32."""
        return segment_sum(torch.ones_like(self.token, dtype=torch.float32), self.sequence, self.count)

    @property
    def step_length(self) -> Float[Tensor, ""]:
        """Mean length of a response over the optimiser step, a scalar."""
        if self.mean_length is not None:
            return self.token.new_full((), self.mean_length)
        return self.token.new_full((), len(self.token) / max(self.count, 1))

    @property
    def offset(self) -> Int[Tensor, " response_tokens"]:
        """Position of each scored token within its own response, from 0."""
        lengths = torch.bincount(self.sequence, minlength=self.count)
        start = torch.cumsum(lengths, 0) - lengths
        return torch.arange(len(self.sequence), device=self.sequence.device) - start[self.sequence]

    def sum(self) -> Float[Tensor, " responses"]:
        """Sum over each response's scored tokens, in float32.

        A long response has some ten thousand nats, which float32 resolves to 0.004: to compare two models, sum the
        differences of ``log_ratio``.
        """
        return segment_sum(self.token, self.sequence, self.count)

    def mean(self) -> Float[Tensor, " responses"]:
        """Mean over each response's scored tokens, in float32."""
        return segment_mean(self.token, self.sequence, self.count)

    def log_ratio(self, reference: Ragged) -> Ragged:
        """These log-probs less the reference's of the same tokens, token by token, in at least float32."""
        exact = torch.promote_types(self.token.dtype, torch.float32)
        return self.with_token(self.token.to(exact) - reference.token)

    def with_token(self, token: Float[Tensor, " response_tokens"]) -> Ragged:
        """The same layout with other numbers."""
        return Ragged(token, self.sequence, self.count, self.mean_length)

    def slot(self, slot: int, slots: int, mean_length: float | None = None, tokens: int | None = None) -> Ragged:
        """Every ``slots``-th response, from ``slot``: slot 0 of 2 are the chosen ones of a batch of pairs.

        Args:
            slot: from 0.
            slots: responses of a group.
            mean_length: of the slot's responses over the optimiser step.
            tokens: scored tokens of the slot, where the host knows; None: it waits for the device to count them.
        """
        if slots == 1:
            return Ragged(self.token, self.sequence, self.count, mean_length)
        in_slot = self.sequence % slots == slot
        at = in_slot.nonzero().squeeze(1) if tokens is None else positions(in_slot, tokens)
        token, sequence = self.token.index_select(0, at), self.sequence.index_select(0, at)
        return Ragged(token, sequence // slots, self.count // slots, mean_length)


@dataclass
class TopTokens:
    """The most likely tokens at some of the scored positions, and the token that stands there, as logits.

    Logits carry gradients. Their differences are those of log-probs.
    """

    logit: Float[Tensor, "positions width"]  #: highest first
    token: Int[Tensor, "positions width"]
    target_logit: Float[Tensor, " positions"]  #: of the token that stands there
    target: Int[Tensor, " positions"]  #: the token that stands there
    sequence: Int[Tensor, " positions"]  #: the response of each position: 0 .. count - 1, never decreasing
    count: int

    def sum(self, values: Float[Tensor, " positions"]) -> Float[Tensor, " responses"]:
        """Sum of one number a position over each response, in float32; 0 where a response has no position."""
        return segment_sum(values, self.sequence, self.count)

    def mean(self, values: Float[Tensor, " positions"]) -> Float[Tensor, " responses"]:
        """Mean of one number a position over each response, in float32; 0 where a response has no position."""
        return segment_mean(values, self.sequence, self.count)

    def slot(self, slot: int, slots: int) -> TopTokens:
        """The positions of every ``slots``-th response, from ``slot``."""
        keep = self.sequence % slots == slot
        sequence, count = self.sequence[keep] // slots, self.count // slots
        return TopTokens(
            self.logit[keep], self.token[keep], self.target_logit[keep], self.target[keep], sequence, count
        )


@dataclass
class SequenceLogProbs(Ragged):
    """Log-probability of every scored token under one model, and what the head computed beside it.

    ``entropy``, ``top`` and ``reference_kl`` carry gradients; ``top1`` and ``collision`` do not. What was not requested
    is None.
    """

    entropy: Float[Tensor, " response_tokens"] | None = None  #: -sum_v p_v log p_v
    top1: Bool[Tensor, " response_tokens"] | None = None  #: whether the token is the model's most likely one
    collision: Float[Tensor, " response_tokens"] | None = None  #: log sum_v p_v ** 2 (WPO)
    top: TopTokens | None = None  #: most likely tokens at the positions that were asked for
    #: KL(this model || reference) over the whole vocabulary where the token stands, nats
    reference_kl: Float[Tensor, " response_tokens"] | None = None

    def statistic(self, name: str) -> Ragged:
        """A statistic as ragged numbers. Raises ValueError when the forward pass was not asked for it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"the forward pass did not compute {name!r}; ask for it: forward(batch, statistics={{{name!r}}})"
            )
        return self.with_token(value.float())


@dataclass
class Pair:
    """The chosen and the rejected responses of a batch of pairs; row i of both belongs to the same prompt."""

    chosen: Ragged
    rejected: Ragged


@dataclass
class JudgedPair:
    """The same responses in two contexts; response i of both belongs to row i."""

    judged: Ragged  #: behind prompt and judgment; empty where a row has no judgment
    plain: Ragged  #: behind the prompt alone

    @property
    def criticised(self) -> Bool[Tensor, " plain_tokens"]:
        """The tokens of ``plain`` that ``judged`` holds too, in the same order."""
        return (self.judged.length > 0)[self.plain.sequence]


@dataclass
class Paraphrases:
    """Responses to instructions in two wordings; entry i of both is the same response.

    Entries 2g and 2g + 1 belong to group g: the instruction and its hard negative, which may be empty.
    """

    original: Ragged
    paraphrase: Ragged


@dataclass
class SequencePredictions:
    """Predictions of a model at every scored token of several responses: hidden states and a head, not logits."""

    tokens: Predictions
    sequence: Int[Tensor, " response_tokens"]
    count: int
    mean_length: float | None = None

    def ragged(self, token: Float[Tensor, " response_tokens"]) -> Ragged:
        """One number a scored token in this layout."""
        return Ragged(token, self.sequence, self.count, self.mean_length)

    def detached(self) -> SequencePredictions:
        """The same without gradients: a teacher's, or a reference's."""
        return SequencePredictions(self.tokens.detached(), self.sequence, self.count, self.mean_length)


@dataclass
class ActionValues:
    """Values of value heads at every scored token: of the state that it is chosen in, and of choosing it.

    The state of a token is everything before it, the action is the token.
    """

    q: Float[Tensor, "heads response_tokens"]  #: value of the action under each trained head
    target_q: Float[Tensor, "heads response_tokens"]  #: the same under the slowly moving copies; no gradients
    value: Float[Tensor, " response_tokens"]  #: value of the state
    #: log-softmax of each trained head's values over the vocabulary, at the action
    q_log_prob: Float[Tensor, "heads response_tokens"]


@dataclass
class Moments:
    """Running mean and standard deviation of a scalar, as a loss sees them (both 0-dimensional)."""

    mean: Float[Tensor, ""]
    std: Float[Tensor, ""]
    count: Float[Tensor, ""]  #: numbers seen; 0 before the first update
