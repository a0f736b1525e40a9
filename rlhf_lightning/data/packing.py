"""Groups end to end in one row: ``Example`` -> ``PackedBatch``, in whole-array operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_lightning.data.examples import Examples
from rlhf_lightning.types import Example, PreferenceBatch, StepTotals, SupervisedBatch

#: Batch class by responses a group.
BATCHES: dict[int, type[SupervisedBatch] | type[PreferenceBatch]] = {1: SupervisedBatch, 2: PreferenceBatch}


def local_totals(examples: Examples, groups: NDArray[np.int64] | slice = slice(None)) -> StepTotals:
    """Totals of some groups on their own: what evaluation uses, where a batch is not part of an optimiser step."""
    slot_tokens = examples.slot_tokens[groups]
    return StepTotals(len(slot_tokens), tuple(slot_tokens.sum(axis=0, dtype=np.int64).tolist()))


def pack(
    examples: Sequence[Example],
    *,
    totals: StepTotals | None = None,
    indices: Sequence[int] | NDArray[np.int64] | None = None,
    reference_log_probs: NDArray[np.float32] | None = None,
) -> PreferenceBatch | SupervisedBatch:
    """Pack groups into one row: each prompt once, then its responses in order, positions continuing after the prompt.

    Args:
        examples: the groups; an ``Examples`` is packed without making a Python object a group.
        totals: denominators of the optimiser step; None: this batch is the whole step.
        indices: row of the data set of each group; None: the position that each group had in its data set.
        reference_log_probs: one number (nats) for every scored token, in the batch's own order, from the cache.

    Returns:
        A ``SupervisedBatch`` for one response a group, a ``PreferenceBatch`` for two (chosen, then rejected).

    Raises:
        ValueError: no groups, a number of responses that no batch class stands for, or ``reference_log_probs`` of
            another length than the batch has scored tokens.
    """
    columns = examples if isinstance(examples, Examples) else Examples.build(examples)
    if not len(columns) or columns.slots not in BATCHES:
        raise ValueError(f"cannot pack {len(columns)} groups of {columns.slots} responses; supported: 1 or 2 responses")
    lengths, bounds = columns.lengths, columns.bounds
    start = np.cumsum(lengths) - lengths  # of each group in the packed row
    at = np.arange(int(lengths.sum()), dtype=np.int64)
    taken = at + np.repeat(bounds[:, 0] - start, lengths)
    cuts = bounds - bounds[:, :1] + start[:, None]  # the bounds of every group, in the packed row
    layout = _scored_layout(cuts, columns.scored[taken])
    if reference_log_probs is not None and len(reference_log_probs) != len(layout["target"]):
        raise ValueError(
            f"{len(reference_log_probs)} reference log-probs for {len(layout['target'])} scored tokens: the cache "
            "entries do not belong to these rows"
        )
    arrays = {
        "ids": columns.tokens[taken].astype(np.int64),
        "positions": at - _position_origin(cuts),
        "prompt_span": cuts[:, :2],
        "response_span": np.stack([cuts[:, 1:-1], cuts[:, 2:]], axis=-1).reshape(-1, 2),
        "parent": np.repeat(np.arange(len(columns)), columns.slots),
        "index": columns.number if indices is None else np.asarray(indices, dtype=np.int64),
        **layout,
    }
    fields: dict[str, Any] = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    if columns.slots == 2 and columns.margin is not None:
        fields["margin"] = torch.from_numpy(columns.margin.copy())
    if reference_log_probs is not None:
        fields["reference_log_probs"] = torch.from_numpy(np.asarray(reference_log_probs, dtype=np.float32))
    return BATCHES[columns.slots](totals=totals or local_totals(columns), rows=columns.rows(), **fields)


def _position_origin(cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """What to subtract from a token's index in the row to get its position, (tokens,).

    The group's start for a prompt token; for a response token the response's start less the prompt's length.
    """
    origin = cuts[:, :-1].copy()
    origin[:, 1:] -= (cuts[:, 1] - cuts[:, 0])[:, None]
    return np.repeat(origin.ravel(), np.diff(cuts, axis=1).ravel())


def _scored_layout(cuts: NDArray[np.int64], scored: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    """``target``, ``source`` and ``sequence`` of every scored token, response by response."""
    slots = cuts.shape[1] - 2
    target = np.flatnonzero(scored)
    response = np.full((len(cuts), slots + 1), -1, dtype=np.int64)
    response[:, 1:] = np.arange(len(cuts) * slots).reshape(-1, slots)
    sequence = np.repeat(response.ravel(), np.diff(cuts, axis=1).ravel())[target]
    first = target == cuts[:, 1:-1].ravel()[sequence]
    # The first token of a response is predicted by the last one of its prompt, whatever lies between them in the row.
    source = np.where(first, cuts[sequence // slots, 1] - 1, target - 1)
    return {"target": target, "source": source, "sequence": sequence}
