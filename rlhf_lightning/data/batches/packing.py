"""Packing of groups end to end in one row: ``Example`` -> ``PackedBatch``, in whole-array operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_lightning import types
from rlhf_lightning.data.kinds import kind_of
from rlhf_lightning.data.tokens.examples import Examples, Groups
from rlhf_lightning.types import (
    AttributesBatch,
    Example,
    PackedBatch,
    PreferenceBatch,
    StepsBatch,
    StepTotals,
    SupervisedBatch,
)

#: Prefix of the numbers that become the columns of ``AttributesBatch.attributes``.
ATTRIBUTE = "attribute:"


def local_totals(examples: Groups, groups: NDArray[np.int64] | slice = slice(None)) -> StepTotals:
    """Totals of some groups alone, for batches that are not part of an optimiser step, as in evaluation."""
    slot_tokens = examples.slot_tokens[groups]
    return StepTotals(len(slot_tokens), tuple(slot_tokens.sum(axis=0, dtype=np.int64).tolist()))


def pack(
    examples: Sequence[Example],
    *,
    kind: str | None = None,
    totals: StepTotals | None = None,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    reference_log_probs: NDArray[np.float32] | None = None,
) -> PackedBatch:
    """Pack groups into one row: each prompt once, then its responses in order, positions continuing after the prompt.

    Args:
        examples: the groups; an ``Examples`` is packed without a Python object for each group.
        kind: of the batch, a name of ``kinds.KINDS``; None: a plain ``PackedBatch``, or for one prompt of one or two
            responses a ``SupervisedBatch`` or ``PreferenceBatch``.
        totals: denominators of the optimiser step; None: this batch is the whole step.
        indices: row of the data set of each group; None: the position that each group had in its data set.
        reference_log_probs: one number (nats) for every scored token, in the batch's order, from the cache.

    Returns:
        A batch of the kind's class.

    Raises:
        ValueError: no groups, a kind whose numbers the groups lack, or ``reference_log_probs`` of another length than
            the batch has scored tokens.
    """
    columns = examples if isinstance(examples, Examples) else Examples.build(examples)
    if not len(columns):
        raise ValueError("cannot pack 0 groups")
    bounds = columns.by_prompt
    lengths = bounds[:, -1] - bounds[:, 0]
    start = np.cumsum(lengths) - lengths  # of each prompt in the packed row
    at = np.arange(int(lengths.sum()), dtype=np.int64)
    taken = at + np.repeat(bounds[:, 0] - start, lengths)
    cuts = bounds - bounds[:, :1] + start[:, None]  # the bounds of every prompt and its responses, in the packed row
    layout = _target_layout(cuts, columns.loss_mask[taken])
    if reference_log_probs is not None and len(reference_log_probs) != len(layout["target"]):
        raise ValueError(
            f"{len(reference_log_probs)} reference log-probs for {len(layout['target'])} scored tokens: the "
            "entries of the cache belong to other rows"
        )
    arrays = {
        "ids": columns.tokens[taken].astype(np.int64),
        "positions": at - _position_origin(cuts),
        "prompt_span": cuts[:, :2],
        "response_span": np.stack([cuts[:, 1:-1], cuts[:, 2:]], axis=-1).reshape(-1, 2),
        "parent": np.repeat(np.arange(len(cuts)), cuts.shape[1] - 2),
        "index": columns.number if indices is None else np.asarray(indices, dtype=np.int64),
        **layout,
    }
    batch = _batch_class(columns, kind)
    kind_fields = _kind_fields(columns, batch, taken[layout["target"]])
    fields: dict[str, Any] = {
        name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in (arrays | kind_fields).items()
    }
    if batch is AttributesBatch:
        fields["names"] = tuple(name.removeprefix(ATTRIBUTE) for name in _attributes(columns))
    if reference_log_probs is not None:
        fields["reference_log_probs"] = torch.from_numpy(np.asarray(reference_log_probs, dtype=np.float32))
    return batch(totals=totals or local_totals(columns), rows=columns.rows(), **fields)


def batch_of(kind: str) -> type[PackedBatch]:
    """The class of a kind's batches."""
    batch: type[PackedBatch] = getattr(types, kind_of(kind).batch)
    return batch


def _batch_class(columns: Examples, kind: str | None) -> type[PackedBatch]:
    if kind is None:
        plain = {1: SupervisedBatch, 2: PreferenceBatch} if columns.prompts == 1 else {}
        return plain.get(columns.slots, PackedBatch)
    batch = batch_of(kind)
    if missing := sorted(set(batch.NUMBERS) - set(columns.numbers)):
        raise ValueError(
            f"{kind} data needs {missing} of every response, but the groups have {sorted(columns.numbers)}"
        )
    return batch


def _kind_fields(columns: Examples, batch: type[PackedBatch], positions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Fields of a class of batches other than tokens.

    Args:
        columns: the groups.
        batch: the class.
        positions: of every scored token of the batch in the columns' flat tokens.
    """
    fields: dict[str, NDArray[Any]] = {name: columns.numbers[name].ravel() for name in batch.NUMBERS}
    if issubclass(batch, PreferenceBatch):
        fields |= {name: columns.numbers[name].ravel() for name in batch.OPTIONAL if name in columns.numbers}
        if columns.margin is not None:
            fields["margin"] = columns.margin
    if batch is StepsBatch:
        if columns.step_labels is None:
            raise ValueError("steps data needs a label for the last token of every step, but the groups have none")
        fields["step_label"] = columns.step_labels[positions]
    if batch is AttributesBatch:
        fields["attributes"] = np.stack([columns.numbers[name].ravel() for name in _attributes(columns)], axis=-1)
    return fields


def _attributes(columns: Examples) -> list[str]:
    names = [name for name in columns.numbers if name.startswith(ATTRIBUTE)]
    if not names:
        raise ValueError("attributes data needs at least one rating, but the groups have none")
    return names


def _position_origin(cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offset of each token: its index in the row minus its position, (tokens,).

    The prompt's start for a prompt token; for a response token the response's start less the prompt's length.
    """
    origin = cuts[:, :-1].copy()
    origin[:, 1:] -= (cuts[:, 1] - cuts[:, 0])[:, None]
    return np.repeat(origin.ravel(), np.diff(cuts, axis=1).ravel())


def _target_layout(cuts: NDArray[np.int64], mask: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """``target``, ``source`` and ``sequence`` of every scored token, response by response."""
    slots = cuts.shape[1] - 2
    target = np.flatnonzero(mask)
    response = np.full((len(cuts), slots + 1), -1, dtype=np.int64)
    response[:, 1:] = np.arange(len(cuts) * slots).reshape(-1, slots)
    sequence = np.repeat(response.ravel(), np.diff(cuts, axis=1).ravel())[target]
    first = target == cuts[:, 1:-1].ravel()[sequence]
    # The last token of the prompt predicts the first one of each response, whatever is between them in the row.
    source = np.where(first, cuts[sequence // slots, 1] - 1, target - 1)
    return {"target": target, "source": source, "sequence": sequence}
