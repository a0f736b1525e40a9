"""Base of the rounds of all lessons: groups, and numbers for each of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_lightning.data.batches.loader_position import check_state
from rlhf_lightning.data.batches.plan import Plan
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import PackedBatch, Ragged, SampleGroup, StepTotals

IntArray = NDArray[np.int64]


@dataclass
class TokenRound:
    """Prompts with their kept responses, the same on every process, and numbers for each of their tokens."""

    number: int  #: of the rollout, from 0
    cursor: int  #: position of the next prompt in the stream
    examples: Examples  #: prompts with their kept responses
    index: IntArray  #: row of the data set of each group, (groups,)
    #: by name, one number for every trained token in the order of the responses, float32
    tokens: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    metrics: dict[str, float] = field(default_factory=dict, kw_only=True)  #: logged with its first step

    @property
    def parts(self) -> Sequence[Any]:
        """The round alone: its steps bring nothing in addition to its groups."""
        return (self,)

    def opening(self, batch: PackedBatch, shares: Sequence[IntArray], step: IntArray) -> PackedBatch:
        """The first micro-batch of a step as it is."""
        return batch

    @property
    def slots(self) -> int:
        """Responses of a group."""
        return self.examples.slots

    @property
    def lengths(self) -> IntArray:
        """Trained tokens of each response, (responses,)."""
        return self.examples.slot_tokens.ravel().astype(np.int64)

    @property
    def sequence(self) -> Tensor:
        """The response of every trained token."""
        return torch.from_numpy(np.repeat(np.arange(len(self.lengths)), self.lengths))

    def ragged(self, values: Tensor) -> Ragged:
        """One number for every trained token in this layout."""
        return Ragged(values, self.sequence, len(self.lengths))

    def token_indices(self, groups: IntArray) -> Tensor:
        """Indices of the trained tokens of some groups in the flat order of all, in the order of a batch of them."""
        each = self.examples.slot_tokens.sum(axis=1, dtype=np.int64)
        start, length = (np.cumsum(each) - each)[groups], each[groups]
        ahead = np.cumsum(length) - length
        return torch.from_numpy(np.arange(int(length.sum())) + np.repeat(start - ahead, length))

    def scatter(self, by_name: Mapping[str, list[tuple[IntArray, Tensor]]]) -> dict[str, Tensor]:
        """Put numbers that came batch by batch, each with its groups, into the order of the responses."""
        total = int(self.lengths.sum())
        flat: dict[str, Tensor] = {}
        for name, parts in by_name.items():
            values = torch.full((total,), torch.nan)
            for groups, part in parts:
                values[self.token_indices(groups)] = part
            flat[name] = values
        return flat

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {
            "number": self.number,
            "cursor": self.cursor,
            "ids": torch.from_numpy(np.array(self.examples.tokens)),
            "bounds": torch.from_numpy(np.array(self.examples.bounds)),
            "rows": self.examples.names.to_pylist(),
            "index": torch.from_numpy(self.index),
            "tokens": dict(self.tokens),
            "metrics": dict(self.metrics),
        }

    @staticmethod
    def restored(state: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that :meth:`state_dict` described, by name.

        Raises:
            ValueError: another version wrote it.
        """
        check_state(state, ("number", "cursor", "ids", "bounds", "rows", "index", "tokens"))
        return {
            "number": state["number"],
            "cursor": state["cursor"],
            "examples": _view(state["ids"].numpy(), state["bounds"].numpy(), state["rows"], _mask(state)),
            "index": state["index"].numpy(),
            "tokens": dict(state["tokens"]),
            "metrics": dict(state.get("metrics", {})),
        }


def examples_of(
    groups: Sequence[SampleGroup],
    responses: Sequence[Sequence[int]],
    slots: int,
    masks: Sequence[Sequence[bool]] | None = None,
) -> Examples:
    """Prompts with equally many responses each; every response may be empty, even all of a prompt.

    Args:
        groups: the prompts, none or more.
        responses: of one prompt after another.
        slots: responses of each prompt.
        masks: which tokens of each response are scored; None: all.
    """
    parts = [
        part for at, group in enumerate(groups) for part in (group.prompt, *responses[at * slots : (at + 1) * slots])
    ]
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    ends = np.cumsum(lengths)
    cuts = np.concatenate([(ends - lengths).reshape(len(groups), slots + 1), ends[slots :: slots + 1, None]], axis=1)
    ids = np.fromiter((token for part in parts for token in part), dtype=np.int32, count=int(lengths.sum()))
    mask = None
    if masks is not None:
        kept = [
            token
            for at, group in enumerate(groups)
            for part in ([False] * len(group.prompt), *masks[at * slots : (at + 1) * slots])
            for token in part
        ]
        mask = np.array(kept, dtype=bool)
    return _view(ids, cuts, [group.row for group in groups], mask)


def floats(rows: Sequence[Sequence[float]]) -> Tensor:
    """Numbers of one response after another, float32."""
    count = sum(map(len, rows))
    return torch.from_numpy(np.fromiter((x for row in rows for x in row), dtype=np.float32, count=count))


def _view(ids: NDArray[np.int32], bounds: IntArray, rows: list[str], mask: NDArray[np.bool_] | None = None) -> Examples:
    if mask is None:
        mask = np.ones(len(ids), dtype=bool)
        for start, end in bounds[:, :2].tolist():
            mask[start:end] = False
    ahead = np.concatenate([[0], np.cumsum(mask)])
    return Examples(
        ids,
        mask,
        bounds,
        np.diff(ahead[bounds[:, 1:]], axis=1).astype(np.int32),
        pa.array(rows, pa.large_string()),
        None,
        np.arange(len(bounds), dtype=np.int64),
    )


def _mask(state: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Mask of the tokens that a state's round scores; None where it has none: all of the responses."""
    mask = state.get("scored")
    return None if mask is None else mask.numpy()


def exact_totals(plan: Plan, step: int) -> StepTotals:
    """Denominators of a step; one token at least, so that a step without any has a mean, which is 0."""
    totals = plan.totals(step)
    if not totals.groups:
        return totals._replace(groups=1, slot_tokens=(1,) * len(totals.slot_tokens))
    if any(totals.slot_tokens):
        return totals
    return totals._replace(slot_tokens=(1, *totals.slot_tokens[1:]))
