"""The tokenised data set in flat columns: a million groups are a handful of arrays, not a million Python objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rlhf_lightning.types import Example


@dataclass(frozen=True)
class Examples(Sequence[Example]):
    """A sequence of ``Example`` held in flat columns; an ``Example`` is made only when one is asked for.

    A group's tokens lie end to end: prompt, then its responses in order. ``bounds[g]`` holds the K + 2 cuts of group
    ``g`` in ``tokens``: start of the prompt, start of each response, end of the last one. A selection is a view: it
    shares ``tokens`` and ``scored`` and has its own ``bounds``.

    Memory: 5 bytes a token plus about 60 bytes a group and its provenance string.
    """

    tokens: NDArray[np.int32]  #: (flat tokens,)
    scored: NDArray[np.bool_]  #: (flat tokens,) False on every prompt token
    bounds: NDArray[np.int64]  #: (groups, slots + 2)
    slot_tokens: NDArray[np.int32]  #: (groups, slots) scored tokens of each response
    names: pa.LargeStringArray  #: (groups,) "file:row" of each group
    margin: NDArray[np.float32] | None  #: (groups,) score(chosen) - score(rejected)
    number: NDArray[np.int64]  #: (groups,) position in the data set that was built

    @classmethod
    def build(cls, examples: Iterable[Example]) -> Examples:
        """Gather examples, one at a time, into columns.

        Args:
            examples: groups with equally many responses each; consumed once, so a generator will do.

        Raises:
            ValueError: an example without prompt tokens, with an empty or entirely unscored response, with a mask of
                another length than its response, or with another number of responses than the first one; or only
                some examples have a margin. The message names the row.
        """
        tokens, scored, lengths, counts = array("i"), bytearray(), array("q"), array("i")
        names: list[str] = []
        margins = array("d")
        slots = None
        for number, example in enumerate(examples):
            name = example.row or f"example {number}"
            slots = len(example.responses) if slots is None else slots
            masks = _masks(example, slots, name)
            tokens.extend(example.prompt)
            scored.extend(bytes(len(example.prompt)))
            lengths.append(len(example.prompt))
            for response, mask in zip(example.responses, masks, strict=True):
                tokens.extend(response)
                scored.extend(mask)
                lengths.append(len(response))
                counts.append(sum(mask))
            names.append(example.row)
            margins.append(float("nan") if example.margin is None else example.margin)
        slots = slots or 1
        cuts = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
        starts = cuts[:-1].reshape(-1, slots + 1)
        ends = cuts[1:].reshape(-1, slots + 1)[:, -1:]
        return cls(
            tokens=np.asarray(tokens, dtype=np.int32),
            scored=np.frombuffer(bytes(scored), dtype=np.bool_),
            bounds=np.concatenate([starts, ends], axis=1),
            slot_tokens=np.asarray(counts, dtype=np.int32).reshape(-1, slots),
            names=pa.array(names, pa.large_string()),
            margin=_margin(np.asarray(margins, dtype=np.float64), names),
            number=np.arange(len(names), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def slots(self) -> int:
        """Responses of every group, K."""
        return int(self.bounds.shape[1]) - 2

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that each group takes in a packed batch (its prompt once), (groups,)."""
        return self.bounds[:, -1] - self.bounds[:, 0]

    @property
    def padded_lengths(self) -> NDArray[np.int64]:
        """Tokens that each group takes alone in a padded batch: K rows of prompt and longest response, (groups,)."""
        cuts = np.diff(self.bounds, axis=1)
        longest: NDArray[np.int64] = cuts[:, 0] + cuts[:, 1:].max(axis=1)
        return self.slots * longest

    def row(self, group: int) -> str:
        """Where a group came from as "file:row", or its position when the source did not say."""
        return self.names[group].as_py() or f"example {self.number[group]}"

    def rows(self) -> list[str]:
        """``row`` of every group."""
        return [name or f"example {i}" for name, i in zip(self.names.to_pylist(), self.number.tolist(), strict=True)]

    def select(self, groups: NDArray[np.int64]) -> Examples:
        """A view of some groups, in the order given."""
        return replace(
            self,
            bounds=self.bounds[groups],
            slot_tokens=self.slot_tokens[groups],
            names=self.names.take(pa.array(groups)),
            margin=None if self.margin is None else self.margin[groups],
            number=self.number[groups],
        )

    def first_response(self) -> Examples:
        """A view that keeps each group's first response only: pairs become demonstrations of the chosen response."""
        return replace(self, bounds=self.bounds[:, :3], slot_tokens=self.slot_tokens[:, :1], margin=None)

    @overload
    def __getitem__(self, group: int) -> Example: ...
    @overload
    def __getitem__(self, group: slice) -> Examples: ...
    def __getitem__(self, group: int | slice) -> Example | Examples:
        if isinstance(group, slice):
            return self.select(np.arange(len(self))[group])
        cuts = self.bounds[group].tolist()
        spans = [slice(a, b) for a, b in pairwise(cuts[1:])]
        margin = None if self.margin is None else float(self.margin[group])
        return Example(
            prompt=self.tokens[cuts[0] : cuts[1]].tolist(),
            responses=[self.tokens[span].tolist() for span in spans],
            scored=None if self.scored[cuts[1] : cuts[-1]].all() else [self.scored[span].tolist() for span in spans],
            row=self.names[group].as_py(),
            margin=margin,
        )


def _masks(example: Example, slots: int, name: str) -> list[bytes]:
    """The scored mask of each response as bytes of 0 and 1, after checking the example's shape."""
    if len(example.responses) != slots:
        raise ValueError(f"{name}: {len(example.responses)} responses where the examples before it have {slots}")
    if not example.prompt:
        raise ValueError(f"{name}: the prompt has no token, so nothing predicts the first response token")
    if example.scored is None:
        masks = [b"\1" * len(response) for response in example.responses]
    else:
        masks = [bytes(map(bool, mask)) for mask in example.scored]
    if [len(mask) for mask in masks] != [len(response) for response in example.responses]:
        raise ValueError(f"{name}: the scored masks and the responses have different lengths")
    if not all(map(any, masks)):
        raise ValueError(f"{name}: a response without a scored token")
    return masks


def _margin(margins: NDArray[np.float64], names: list[str]) -> NDArray[np.float32] | None:
    """The margin column; None when no example has one."""
    absent = np.isnan(margins)
    if absent.all():
        return None
    if absent.any():
        raise ValueError(f"{names[int(absent.argmax())]}: no margin, while other examples have one")
    return margins.astype(np.float32)
