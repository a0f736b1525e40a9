"""Every tensor that crosses a border between packages, with its shape.

Axis names, used everywhere with one meaning:

* ``tokens``: all tokens of a packed row, prompts and responses end to end;
* ``prompts``: the groups of a batch (a group is one prompt with its responses);
* ``responses``: the responses of a batch, group by group;
* ``response_tokens``: the *scored* tokens of all responses, response by response. A response's end-of-sequence
  token is scored; prompt tokens, padding and the user turns inside a multi-turn response never are.

Log-probabilities are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.ops.segments import segment_mean, segment_sum


class StepTotals(NamedTuple):
    """What the whole optimiser step holds, over every micro-batch and every process.

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

    Whether a loss sums or averages over tokens is always said: ``values.sum()`` or ``values.mean()``.
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
            return self.token.new_tensor(self.mean_length)
        return self.token.new_tensor(len(self.token) / max(self.count, 1))

    @property
    def offset(self) -> Int[Tensor, " response_tokens"]:
        """Position of each scored token within its own response, from 0."""
        lengths = torch.bincount(self.sequence, minlength=self.count)
        start = torch.cumsum(lengths, 0) - lengths
        return torch.arange(len(self.sequence), device=self.sequence.device) - start[self.sequence]

    def sum(self) -> Float[Tensor, " responses"]:
        """Sum over each response's scored tokens, in float32."""
        return segment_sum(self.token, self.sequence, self.count)

    def mean(self) -> Float[Tensor, " responses"]:
        """Mean over each response's scored tokens, in float32."""
        return segment_mean(self.token, self.sequence, self.count)

    def with_token(self, token: Float[Tensor, " response_tokens"]) -> Ragged:
        """The same layout with other numbers."""
        return Ragged(token, self.sequence, self.count, self.mean_length)

    def slot(self, slot: int, slots: int, mean_length: float | None = None) -> Ragged:
        """Every ``slots``-th response, from ``slot``: slot 0 of 2 are the chosen ones of a batch of pairs."""
        keep = self.sequence % slots == slot
        return Ragged(self.token[keep], self.sequence[keep] // slots, self.count // slots, mean_length)


@dataclass
class SequenceLogProbs(Ragged):
    """Log-probability of every scored token under one model, and what the head computed beside it.

    ``entropy`` carries gradients; ``top1`` and ``collision`` do not. A statistic nobody asked for is None.
    """

    entropy: Float[Tensor, " response_tokens"] | None = None  #: -sum_v p_v log p_v
    top1: Bool[Tensor, " response_tokens"] | None = None  #: whether the token is the model's most likely one
    collision: Float[Tensor, " response_tokens"] | None = None  #: log sum_v p_v ** 2 (WPO)

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
    """The chosen and the rejected responses of a batch of pairs; row i of both answers the same prompt."""

    chosen: Ragged
    rejected: Ragged


@dataclass
class Moments:
    """Running mean and standard deviation of a scalar, as a loss sees them (both 0-dimensional)."""

    mean: Float[Tensor, ""]
    std: Float[Tensor, ""]
    count: Float[Tensor, ""]  #: numbers seen; 0 before the first update


@dataclass
class PreferenceLoss:
    """What a preference loss returns: one number a pair, and the detached implicit rewards behind it."""

    loss: Float[Tensor, " pairs"]
    chosen_reward: Float[Tensor, " pairs"]
    rejected_reward: Float[Tensor, " pairs"]
    #: numbers to fold into the running statistics that the loss asked for (``running``), detached
    observed: Float[Tensor, " observed"] | None = None
    #: further detached per-pair (or scalar) diagnostics by name, logged as ``train/<name>``
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class StepOutput:
    """What ``AlignmentModule.forward`` returns: a scalar to differentiate and detached diagnostics."""

    loss: Float[Tensor, ""]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class PackedBatch:
    """Prompts and responses end to end in one row: each prompt once, each response once, no padding.

    A response's positions continue after its prompt's last one; it attends to its own prompt and to its own earlier
    tokens, nothing else. Every prompt has at least one token, so every response token has a predictor.
    """

    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    prompt_span: Int[Tensor, "prompts 2"]  #: [start, end) of each prompt in ``ids``
    response_span: Int[Tensor, "responses 2"]  #: [start, end) of each response in ``ids``
    parent: Int[Tensor, " responses"]  #: the prompt each response answers
    target: Int[Tensor, " response_tokens"]  #: index in ``ids`` of each scored token
    source: Int[Tensor, " response_tokens"]  #: index of the token whose hidden state predicts it
    sequence: Int[Tensor, " response_tokens"]  #: the response each scored token belongs to
    index: Int[Tensor, " prompts"]  #: row of the data set, for error reports and caches
    totals: StepTotals
    rows: list[str] = field(default_factory=list)  #: "file:row" of each group, for error reports
    reference_log_probs: Float[Tensor, " response_tokens"] | None = None  #: from the reference cache

    def __len__(self) -> int:
        return len(self.prompt_span)

    @property
    def slots(self) -> int:
        """Responses per prompt, K."""
        return len(self.response_span) // max(len(self.prompt_span), 1)

    def ragged(self, token: Float[Tensor, " response_tokens"]) -> Ragged:
        """Per-token numbers in this batch's layout."""
        return Ragged(token, self.sequence, len(self.response_span), self.totals.mean_length())

    def slot(self, values: Ragged, slot: int) -> Ragged:
        """The responses of one slot, with that slot's mean length over the optimiser step."""
        return values.slot(slot, self.slots, self.totals.mean_length(slot))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedBatch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> PackedBatch:
        """The same batch in pinned host memory."""
        pinned: dict[str, Any] = {
            f.name: value.pin_memory() for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)


@dataclass
class SupervisedBatch(PackedBatch):
    """One response a prompt (K = 1)."""


@dataclass
class PreferenceBatch(PackedBatch):
    """Two responses a prompt, chosen before rejected (K = 2)."""

    margin: Float[Tensor, " prompts"] | None = None  #: score(chosen) - score(rejected), in the data's own units

    def pair(self, values: Ragged) -> Pair:
        """Split per-response values into chosen and rejected."""
        return Pair(self.slot(values, 0), self.slot(values, 1))


@dataclass(frozen=True)
class Example:
    """One tokenised group, the unit of every data set: a prompt and its K responses."""

    prompt: list[int]
    responses: list[list[int]]
    #: which tokens of each response are scored; None: all of them
    scored: list[list[bool]] | None = None
    row: str = ""  #: "file:row" where it came from
    margin: float | None = None
