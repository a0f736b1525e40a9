"""The tokenised data set in flat columns: a million groups are a handful of arrays, not a million Python objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlhf_lightning.data.tokens.example_columns import Columns
from rlhf_lightning.types import Example

#: Rows whose columns are digested at a time.
_CHUNK = 4096


class Groups(Protocol):
    """Tokenised groups that can be counted, measured and selected, such as ``Examples`` and ``Mismatches``."""

    @property
    def slot_tokens(self) -> NDArray[np.int32]:
        """Scored tokens of each response, (groups, slots)."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that each group takes in a packed batch, (groups,)."""

    @property
    def padded_lengths(self) -> NDArray[np.int64]:
        """Tokens that each group takes alone in a padded batch, (groups,)."""

    def __len__(self) -> int: ...

    def select(self, groups: NDArray[np.int64]) -> Examples:
        """Some groups, in the order given."""


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """A sequence of ``Example`` held in flat columns; an ``Example`` is made only when one is asked for.

    A group's tokens lie end to end: prompt, then its responses in order; with several prompts, each prompt with its
    responses in turn. ``bounds[g]`` holds the cuts of group ``g`` in ``tokens``: start of the prompt, start of each
    response, end of the last one. An empty response is a slot that the group does not fill; of prompts alone every
    group has one, empty. A selection is a view: it shares ``tokens`` and ``loss_mask`` and has its own ``bounds``.

    Memory: 5 bytes a token plus about 60 bytes a group, its provenance string and its columns.
    """

    tokens: NDArray[np.int32]  #: (flat tokens,)
    loss_mask: NDArray[np.bool_]  #: (flat tokens,) False on every prompt token
    bounds: NDArray[np.int64]  #: (groups, prompts + slots + 1)
    slot_tokens: NDArray[np.int32]  #: (groups, slots) scored tokens of each response
    names: pa.LargeStringArray  #: (groups,) "file:row" of each group
    margin: NDArray[np.float32] | None  #: (groups,) score(chosen) - score(rejected)
    number: NDArray[np.int64]  #: (groups,) position in the data set that was built
    prompts: int = 1  #: prompts of every group
    numbers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  #: by name, (groups, slots); nan: none
    step_labels: NDArray[np.float32] | None = None  #: (flat tokens,) nan on every token that is not scored
    columns: pa.LargeStringArray | None = None  #: (groups,) the row's columns as a JSON object; None: not kept

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that a model reads: a prompt with one of its responses."""
        if not len(self):
            return 0
        spans = np.diff(self.bounds, axis=1).reshape(len(self), self.prompts, -1)
        return int((spans[..., 0] + spans[..., 1:].max(axis=-1)).max())

    def content(self) -> str:
        """Digest of everything that is trained on or read by rewards, without the provenance of the rows."""
        whole = hashlib.blake2b(f"{self.prompts}".encode(), digest_size=16)
        arrays = {"tokens": self.tokens, "scored": self.loss_mask, "bounds": self.bounds, "margin": self.margin}
        for name, values in sorted({**arrays, "steps": self.step_labels, **self.numbers}.items()):
            if values is not None:
                whole.update(f"{name} {values.dtype} {values.shape}".encode())
                whole.update(np.ascontiguousarray(values).data)
        for start in range(0, len(self) if self.columns is not None else 0, _CHUNK):
            assert self.columns is not None
            whole.update(repr(self.columns[start : start + _CHUNK].to_pylist()).encode())
        return whole.hexdigest()

    @classmethod
    def build(cls, examples: Iterable[Example]) -> Examples:
        """Gather examples, one at a time, into columns.

        Args:
            examples: groups; consumed once, so a generator will do. A group with fewer responses than the longest one
                gets empty slots.

        Raises:
            ValueError: an example without prompt tokens, with an entirely unscored response, without any response
                where others have some, with a mask or numbers of another length than its responses, or with another
                number of prompts or other numbers than the first one; or only some examples have a margin. The message
                names the row.
        """
        columns = Columns()
        for example in examples:
            columns.add(example)
        return cls(**columns.finished())

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def slots(self) -> int:
        """Responses of every group, K."""
        return int(self.bounds.shape[1]) - 1 - self.prompts

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that each group takes in a packed batch (each prompt once), (groups,)."""
        return self.bounds[:, -1] - self.bounds[:, 0]

    @property
    def padded_lengths(self) -> NDArray[np.int64]:
        """Tokens that each group takes alone in a padded batch: K rows, as long as its longest one, (groups,)."""
        cuts = np.diff(self.by_prompt, axis=1).reshape(len(self), self.prompts, -1)
        longest: NDArray[np.int64] = (cuts[..., 0] + cuts[..., 1:].max(axis=-1)).max(axis=1)
        return self.slots * longest

    @property
    def by_prompt(self) -> NDArray[np.int64]:
        """The cuts of every prompt with its own responses, (groups * prompts, slots / prompts + 2)."""
        width = self.slots // self.prompts + 1  # a prompt and its responses; its last cut is the next prompt's first
        first = np.arange(self.prompts)[:, None] * width
        return self.bounds[:, first + np.arange(width + 1)].reshape(-1, width + 1)

    def row(self, group: int) -> str:
        """Origin of a group as "file:row", or its position when the source does not give one."""
        return self.names[group].as_py() or f"example {self.number[group]}"

    def rows(self) -> list[str]:
        """``row`` of every group."""
        return [name or f"example {i}" for name, i in zip(self.names.to_pylist(), self.number.tolist(), strict=True)]

    def compact(self) -> Examples:
        """The same groups with their tokens alone, in their order; without labels of steps."""
        each = self.lengths
        starts = np.cumsum(each) - each
        flat = np.arange(int(each.sum())) + np.repeat(self.bounds[:, 0] - starts, each)
        bounds = self.bounds - (self.bounds[:, 0] - starts)[:, None]
        return replace(self, tokens=self.tokens[flat], loss_mask=self.loss_mask[flat], bounds=bounds, step_labels=None)

    def select(self, groups: NDArray[np.int64]) -> Examples:
        """A view of some groups, in the order given."""
        return replace(
            self,
            bounds=self.bounds[groups],
            slot_tokens=self.slot_tokens[groups],
            names=self.names.take(pa.array(groups)),
            margin=None if self.margin is None else self.margin[groups],
            number=self.number[groups],
            numbers={name: values[groups] for name, values in self.numbers.items()},
            columns=None if self.columns is None else self.columns.take(pa.array(groups)),
        )

    def columns_of(self, group: int) -> dict[str, Any]:
        """A row's columns by name as the data has them, and ``prompt`` as it was given; empty where none are kept."""
        columns: dict[str, Any] = {} if self.columns is None else json.loads(self.columns[group].as_py())
        return columns

    def prompts_alone(self) -> Examples:
        """A view that keeps each group's first prompt, with one empty response."""
        bounds = self.bounds[:, [0, 1, 1]]
        slot_tokens = np.zeros((len(self), 1), dtype=np.int32)
        return replace(
            self, bounds=bounds, slot_tokens=slot_tokens, margin=None, prompts=1, numbers={}, step_labels=None
        )

    def first_response(self) -> Examples:
        """A view that keeps each group's first response only: pairs become demonstrations of the chosen response."""
        return replace(self, bounds=self.bounds[:, :3], slot_tokens=self.slot_tokens[:, :1], margin=None, numbers={})

    @overload
    def __getitem__(self, group: int) -> Example: ...
    @overload
    def __getitem__(self, group: slice) -> Examples: ...
    def __getitem__(self, group: int | slice) -> Example | Examples:
        if isinstance(group, slice):
            return self.select(np.arange(len(self))[group])
        cuts = self.bounds[group].tolist()
        spans = [slice(a, b) for a, b in pairwise(cuts)]
        width = self.slots // self.prompts + 1
        prompts = [self.tokens[span].tolist() for span in spans[::width]]
        responses = [span for i, span in enumerate(spans) if i % width]
        margin = None if self.margin is None else float(self.margin[group])
        unscored = any(not self.loss_mask[span].all() for span in responses)
        labels = self.step_labels
        return Example(
            prompt=prompts[0],
            responses=[self.tokens[span].tolist() for span in responses],
            loss_mask=[self.loss_mask[span].tolist() for span in responses] if unscored else None,
            row=self.names[group].as_py(),
            margin=margin,
            more_prompts=tuple(prompts[1:]),
            numbers={name: values[group].tolist() for name, values in self.numbers.items()},
            step_labels=None if labels is None else [labels[span].tolist() for span in responses],
            columns=None if self.columns is None else self.columns[group].as_py(),
        )
