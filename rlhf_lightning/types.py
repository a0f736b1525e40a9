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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.ops.divergence import Predictions
from rlhf_lightning.ops.segments import segment_mean, segment_sum

BatchT = TypeVar("BatchT", bound="PackedBatch")


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

    ``entropy`` and ``top`` carry gradients; ``top1`` and ``collision`` do not. What nobody asked for is None.
    """

    entropy: Float[Tensor, " response_tokens"] | None = None  #: -sum_v p_v log p_v
    top1: Bool[Tensor, " response_tokens"] | None = None  #: whether the token is the model's most likely one
    collision: Float[Tensor, " response_tokens"] | None = None  #: log sum_v p_v ** 2 (WPO)
    top: TopTokens | None = None  #: most likely tokens at the positions that were asked for

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
    """What a model predicts at every scored token of several responses: hidden states and a head, not logits."""

    tokens: Predictions
    sequence: Int[Tensor, " response_tokens"]
    count: int
    mean_length: float | None = None

    def ragged(self, token: Float[Tensor, " response_tokens"]) -> Ragged:
        """One number a scored token in this layout."""
        return Ragged(token, self.sequence, self.count, self.mean_length)


@dataclass
class ActionValues:
    """What value heads say at every scored token: of the state that it is chosen in, and of choosing it.

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
class GroupLoss:
    """What a loss on labelled or ranked responses returns: one number a group, and what the policy gives each response.

    A group is one labelled response or one ranked list; ``reward`` is meaningless in an empty slot.
    """

    loss: Float[Tensor, " groups"]
    reward: Float[Tensor, " responses"]  #: implicit reward or score of each response, detached
    #: numbers to fold into the running statistics that the loss asked for (``running``), detached
    observed: Float[Tensor, " observed"] | None = None
    #: further detached numbers by name, of any number (it may differ from batch to batch), logged as ``train/<name>``
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class MeasuredLoss:
    """What a loss returns that has no reward of its own: numbers to minimise, and what to log beside them."""

    loss: Float[Tensor, " groups"]
    #: further detached numbers by name, of any number, logged as ``train/<name>``
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
    tokens, nothing else. Every response has a prompt of at least one token, so every response token has a predictor.

    A group is a row of the data set: usually one prompt with K responses; where a method looks at a response in
    several contexts, several prompts with equally many responses each. All groups of a batch have equally many slots;
    a slot that a group does not fill (a shorter ranked list, a row without a judgment) is an empty span.
    """

    #: What each group must bring beside tokens, by the name of the batch's field: one number a response.
    NUMBERS: ClassVar[tuple[str, ...]] = ()

    ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    prompt_span: Int[Tensor, "prompts 2"]  #: [start, end) of each prompt in ``ids``
    response_span: Int[Tensor, "responses 2"]  #: [start, end) of each response in ``ids``
    parent: Int[Tensor, " responses"]  #: the prompt each response answers
    target: Int[Tensor, " response_tokens"]  #: index in ``ids`` of each scored token
    source: Int[Tensor, " response_tokens"]  #: index of the token whose hidden state predicts it
    sequence: Int[Tensor, " response_tokens"]  #: the response each scored token belongs to
    index: Int[Tensor, " groups"]  #: row of the data set, for error reports and caches
    totals: StepTotals
    rows: list[str] = field(default_factory=list)  #: "file:row" of each group, for error reports
    reference_log_probs: Float[Tensor, " response_tokens"] | None = None  #: from the reference cache

    def __len__(self) -> int:
        """Groups."""
        return len(self.index)

    @property
    def slots(self) -> int:
        """Responses of a group, K."""
        return len(self.response_span) // max(len(self), 1)

    @property
    def present(self) -> Bool[Tensor, " responses"]:
        """Whether each slot holds a response."""
        return self.response_span[:, 1] > self.response_span[:, 0]

    @property
    def last(self) -> Int[Tensor, " responses"]:
        """Index in ``ids`` of each response's last token, where a reward is read; meaningless for an empty slot."""
        return self.response_span[:, 1] - 1

    def ragged(self, token: Float[Tensor, " response_tokens"]) -> Ragged:
        """Per-token numbers in this batch's layout."""
        return Ragged(token, self.sequence, len(self.response_span), self.totals.mean_length())

    def slot(self, values: Ragged, slot: int) -> Ragged:
        """The responses of one slot, with that slot's mean length over the optimiser step."""
        return values.slot(slot, self.slots, self.totals.mean_length(slot))

    def to(self: BatchT, device: torch.device | str, non_blocking: bool = False) -> BatchT:
        """The same batch on a device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: BatchT) -> BatchT:
        """The same batch in pinned host memory."""
        return self._moved(Tensor.pin_memory)

    def _moved(self: BatchT, move: Callable[[Tensor], Tensor]) -> BatchT:
        moved: dict[str, Any] = {}
        for declared in fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, Tensor):
                moved[declared.name] = move(value)
            elif isinstance(value, tuple) and value and isinstance(value[0], PackedBatch):
                moved[declared.name] = tuple(batch._moved(move) for batch in value)
        return replace(self, **moved)


@dataclass
class SupervisedBatch(PackedBatch):
    """One response a prompt (K = 1)."""


@dataclass
class PreferenceBatch(PackedBatch):
    """Two responses a prompt, chosen before rejected (K = 2)."""

    margin: Float[Tensor, " groups"] | None = None  #: score(chosen) - score(rejected), in the data's own units

    def pair(self, values: Ragged) -> Pair:
        """Split per-response values into chosen and rejected."""
        return Pair(self.slot(values, 0), self.slot(values, 1))


@dataclass(kw_only=True)
class SafetyBatch(PreferenceBatch):
    """Pairs for a cost model: the safer response is the chosen one, and each response is labelled by itself."""

    NUMBERS: ClassVar[tuple[str, ...]] = ("safe",)
    safe: Float[Tensor, " responses"]  #: 1 safe, 0 unsafe


@dataclass(kw_only=True)
class UnpairedBatch(PackedBatch):
    """One response a prompt (K = 1) with a label of its own."""

    NUMBERS: ClassVar[tuple[str, ...]] = ("desirable",)
    desirable: Float[Tensor, " responses"]  #: 1 desirable, 0 undesirable
    #: The prompts of this process's whole share of the optimiser step, each with the response of another prompt, one
    #: batch for each of the step's micro-batches. The step's first micro-batch brings them, the others have none.
    mismatched: tuple[PackedBatch, ...] = ()


@dataclass(kw_only=True)
class RankedBatch(PackedBatch):
    """K responses a prompt, each with a score; lists may differ in length (``present``)."""

    NUMBERS: ClassVar[tuple[str, ...]] = ("score",)
    score: Float[Tensor, " responses"]  #: in the data's own units, higher is better; nan in an empty slot


@dataclass
class JudgedBatch(PackedBatch):
    """One response in two contexts: behind a judgment and not.

    After prompt and judgment (slot 0, empty without a judgment), after the prompt alone (slot 1). Both slots score the
    same tokens.
    """


@dataclass
class ParaphraseBatch(PackedBatch):
    """Instructions in two wordings with their responses, and a hard negative of each.

    In order: original, paraphrase, negative original, negative paraphrase (4 prompts of one response each; the
    negatives may be empty).
    """

    def wordings(self, values: Ragged) -> Paraphrases:
        """Split per-response values into both wordings."""
        tokens, responses = self.totals.slot_tokens, 2 * self.totals.groups
        halves = (values.slot(half, 2, (tokens[half] + tokens[half + 2]) / responses) for half in (0, 1))
        return Paraphrases(*halves)


@dataclass
class ContextBatch(PackedBatch):
    """One response in two contexts: as the teacher and as the student sees it.

    Behind a long context (slot 0), and without it (slot 1). Both slots score the same tokens.
    """


@dataclass(kw_only=True)
class StepsBatch(PackedBatch):
    """One solution a prompt (K = 1), whose scored tokens are the last tokens of its steps, each with a label."""

    step_label: Float[Tensor, " response_tokens"]  #: 1 the step is right, 0 it is wrong; or a soft label


@dataclass(kw_only=True)
class AttributesBatch(PackedBatch):
    """One response a prompt (K = 1) rated by several attributes."""

    attributes: Float[Tensor, "responses attributes"]  #: nan where a rating is missing
    names: tuple[str, ...] = ()  #: of the attributes


@dataclass
class ComparisonBatch(PackedBatch):
    """A pair of responses shown to a judge in both orders, each order answered by the right and by the wrong verdict.

    That is 2 prompts of 2 responses. The chosen response stands first in the first prompt and second in the second one.
    """

    def verdicts(self, values: Ragged) -> tuple[Pair, Pair]:
        """Per-response values as (right, wrong), for each of the two orders."""
        return tuple(Pair(self.slot(values, at), self.slot(values, at + 1)) for at in (0, 2))  # type: ignore[return-value]


@dataclass(frozen=True)
class Example:
    """One tokenised group, the unit of every data set: a prompt and its K responses.

    With several prompts (``more_prompts``) the responses are dealt to them in order, equally many to each.
    An empty response stands for a slot that this group does not fill; its prompt may then be empty too.
    """

    prompt: list[int]
    responses: list[list[int]]
    #: which tokens of each response are scored; None: all of them
    scored: list[list[bool]] | None = None
    row: str = ""  #: "file:row" where it came from
    margin: float | None = None
    more_prompts: tuple[list[int], ...] = ()
    #: one number a response by name: ``score``, ``desirable``, ``safe``, ``attribute:<name>``; nan where there is none
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    #: one number for every token of each response, nan on tokens that are not scored
    step_labels: list[list[float]] | None = None
