"""Packed batches, one class for each kind of data, and the groups that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lightning.ops.attention import Segments
from rlhf_lightning.ops.transfer import positions
from rlhf_lightning.types.host import HostLayout
from rlhf_lightning.types.ragged import Pair, Paraphrases, Ragged, StepTotals

BatchT = TypeVar("BatchT", bound="PackedBatch")

#: Devices that a batch is not moved to in the background: the host itself, and one whose transfers are not ordered.
_WAITING = frozenset({"cpu", "mps"})


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
    parent: Int[Tensor, " responses"]  #: the prompt of each response
    target: Int[Tensor, " response_tokens"]  #: index in ``ids`` of each scored token
    source: Int[Tensor, " response_tokens"]  #: index of the token whose hidden state predicts it
    sequence: Int[Tensor, " response_tokens"]  #: the response each scored token belongs to
    index: Int[Tensor, " groups"]  #: row of the data set, for error reports and caches
    totals: StepTotals
    rows: list[str] = field(default_factory=list)  #: "file:row" of each group, for error reports
    reference_log_probs: Float[Tensor, " response_tokens"] | None = None  #: from the reference cache
    #: Of a micro-batch without groups: what a model runs on in its place, see :meth:`emptied`.
    stand_in: PackedBatch | None = None
    #: Options of the loss by name that the batch's round has instead of the method's own; none outside of rounds.
    loss_options: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def host(self) -> HostLayout:
        """Sizes and spans as plain integers; on a device those that were taken before the transfer."""
        return self._host_layout()

    def _host_layout(self) -> HostLayout:
        segments = Segments.build(self.prompt_span, self.response_span, self.parent)
        lengths = torch.bincount(self.sequence, minlength=len(self.response_span))
        return HostLayout(segments, tuple(lengths.tolist()))

    def __len__(self) -> int:
        """Groups."""
        return len(self.index)

    @property
    def slots(self) -> int:
        """Responses of a group, K; of a micro-batch without groups as many as its stand-in has."""
        batch = self.stand_in or self
        return len(batch.response_span) // max(len(batch), 1)

    @property
    def present(self) -> Bool[Tensor, " responses"]:
        """Return whether each slot holds a response."""
        return self.response_span[:, 1] > self.response_span[:, 0]

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """Values that a model derives from the layout for the batch's next pass; they do not move with the batch."""
        return {}

    @property
    def last(self) -> Int[Tensor, " responses"]:
        """Index in ``ids`` of each response's last token, where a reward is read; meaningless for an empty slot."""
        return self.response_span[:, 1] - 1

    def ragged(self, token: Float[Tensor, " response_tokens"]) -> Ragged:
        """Per-token numbers in this batch's layout."""
        return Ragged(token, self.sequence, len(self.response_span), self.totals.mean_length())

    def slot(self, values: Ragged, slot: int) -> Ragged:
        """The responses of one slot, with that slot's mean length over the optimiser step."""
        slots = self.slots
        return values.slot(slot, slots, self.totals.mean_length(slot), self.host.slot_tokens(slot, slots))

    def of_present(self, values: Tensor) -> Tensor:
        """The numbers of the slots that hold a response, out of one number a slot."""
        present = self.host.present
        return values if present == len(values) else values.index_select(0, positions(self.present, present))

    def emptied(self: BatchT) -> BatchT:
        """A micro-batch without groups, for a process that a step has no group left for.

        It keeps this batch as its ``stand_in``. A model still runs on that one, since all processes gather sharded
        weights and reduce gradients together, but the result counts for nothing.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        empty: dict[str, Any] = {name: value[:0] for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **empty, rows=[], stand_in=self)

    def to(self: BatchT, device: torch.device | str, non_blocking: bool = True) -> BatchT:
        """The same batch on a device.

        Args:
            device: where to.
            non_blocking: let the host continue during a transfer to an accelerator, which to CUDA is out of pinned
                memory. A transfer to the host is always waited for.
        """
        kind = torch.device(device).type
        leaves_host = self.ids.device.type == "cpu" and kind not in _WAITING

        def move(tensor: Tensor) -> Tensor:
            source = tensor.pin_memory() if leaves_host and non_blocking and kind == "cuda" else tensor
            return source.to(device, non_blocking=non_blocking and leaves_host)

        return self._moved(move, read_host=leaves_host)

    def pin_memory(self: BatchT) -> BatchT:
        """The same batch in pinned host memory, from which transfers do not block."""
        return self._moved(Tensor.pin_memory)

    def _moved(self: BatchT, move: Callable[[Tensor], Tensor], *, read_host: bool = False) -> BatchT:
        moved: dict[str, Any] = {}
        for declared in fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, Tensor):
                moved[declared.name] = move(value)
            elif isinstance(value, PackedBatch):
                moved[declared.name] = value._moved(move, read_host=read_host)
            elif isinstance(value, tuple) and value and isinstance(value[0], PackedBatch):
                moved[declared.name] = tuple(batch._moved(move, read_host=read_host) for batch in value)
        batch = replace(self, **moved)
        if read_host or "host" in vars(self):
            batch.host = self.host
        return batch


@dataclass
class SupervisedBatch(PackedBatch):
    """One response a prompt (K = 1)."""


@dataclass
class PreferenceBatch(PackedBatch):
    """Two responses a prompt, chosen before rejected (K = 2)."""

    #: What a group may bring beside tokens, by the name of the batch's field: one number a response.
    OPTIONAL: ClassVar[tuple[str, ...]] = ("win_probability", "policy_sample", "reference_sample")
    #: Those of them that are 0 where a group does not say otherwise.
    DRAWN_BY: ClassVar[tuple[str, ...]] = ("policy_sample", "reference_sample")

    margin: Float[Tensor, " groups"] | None = None  #: score(chosen) - score(rejected), in the data's own units
    #: probability that each response beats one of the policy that the pair was made with, in [0, 1]
    win_probability: Float[Tensor, " responses"] | None = None
    policy_sample: Float[Tensor, " responses"] | None = None  #: 1 the policy drew this response, 0 it did not
    reference_sample: Float[Tensor, " responses"] | None = None  #: 1 the reference drew this response, 0 it did not

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

    def _host_layout(self) -> HostLayout:
        return replace(super()._host_layout(), desirable=int((self.desirable > 0.5).sum()))

    def by_label(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """One number a response, divided into those of the desirable and of the undesirable ones."""
        desirable, count = self.desirable > 0.5, self.host.desirable
        parts = positions(desirable, count), positions(~desirable, len(values) - count)
        return values.index_select(0, parts[0]), values.index_select(0, parts[1])


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
        halves = (
            values.slot(half, 2, (tokens[half] + tokens[half + 2]) / responses, self.host.slot_tokens(half, 2))
            for half in (0, 1)
        )
        return Paraphrases(*halves)


@dataclass
class ContextBatch(PackedBatch):
    """One response in two contexts: as the teacher and as the student sees it.

    Behind a long context (slot 0), and without it (slot 1). Both slots score the same tokens.
    """


@dataclass(kw_only=True)
class InstructionBatch(PackedBatch):
    """One response in three contexts: behind an instruction, behind its opposite, and behind the prompt alone.

    Behind the positive instruction (slot 0), the negative one (slot 1), and none (slot 2). All slots score the same
    tokens.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = ("desirable",)
    desirable: Float[Tensor, " responses"]  #: 1 the response obeys the positive instruction, 0 the negative one


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
    """A pair of responses shown to a judge in both orders, each order with the right and with the wrong verdict.

    That is 2 prompts of 2 responses. The chosen response stands first in the first prompt and second in the second one.
    """

    def verdicts(self, values: Ragged) -> tuple[Pair, Pair]:
        """Per-response values as (right, wrong), for each of the two orders."""
        return tuple(Pair(self.slot(values, at), self.slot(values, at + 1)) for at in (0, 2))  # type: ignore[return-value]


@dataclass(frozen=True)
class Example:
    """One tokenised group, the unit of every data set: a prompt and its K responses.

    With several prompts (``more_prompts``) the responses are dealt to them in order, equally many to each.
    An empty response stands for a slot that this group does not fill; its prompt may then be empty too. A prompt
    alone, for the policy to respond to, is a group of one empty response.
    """

    prompt: list[int]
    responses: list[list[int]]
    #: which tokens of each response are scored; None: all of them
    loss_mask: list[list[bool]] | None = None
    row: str = ""  #: "file:row" where it came from
    margin: float | None = None
    more_prompts: tuple[list[int], ...] = ()
    #: one number a response by name: ``score``, ``desirable``, ``safe``, ``attribute:<name>``, those of
    #: ``PreferenceBatch.OPTIONAL``; nan where there is none
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    #: one number for every token of each response, nan on tokens that are not scored
    step_labels: list[list[float]] | None = None
    #: the row's columns as a JSON object, for rewards; None where nobody asks for them
    columns: str | None = None
