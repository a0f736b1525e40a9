"""The slots of a batch's groups: numbers as a table, and a batch with one of its slots only."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.types import PackedBatch


def by_group(values: Tensor, batch: PackedBatch) -> Tensor:
    """Numbers of the responses as one row a group: ``[groups, slots]``, further dimensions behind."""
    return values.reshape(len(batch), batch.slots, *values.shape[1:])


def only_slot(batch: PackedBatch, slot: int) -> PackedBatch:
    """The prompts and responses of one slot, as if the others had never been packed.

    Args:
        batch: groups of as many prompts as slots, each prompt with one response.
        slot: which, from 0.

    Raises:
        ValueError: prompts have several responses.
    """
    slots = batch.slots
    if len(batch.prompt_span) != len(batch.response_span):
        raise ValueError(f"{len(batch.prompt_span)} prompts with {len(batch.response_span)} responses: not one each")
    starts = batch.prompt_span[:, 0].contiguous()
    at = torch.arange(len(batch.ids), device=batch.ids.device)
    kept = (torch.searchsorted(starts, at, right=True) - 1) % slots == slot
    moved = torch.cumsum(kept, 0) - 1  # where each kept token goes
    scored = batch.sequence % slots == slot
    return PackedBatch(
        ids=batch.ids[kept],
        positions=batch.positions[kept],
        prompt_span=_moved(batch.prompt_span[slot::slots], moved),
        response_span=_moved(batch.response_span[slot::slots], moved),
        parent=torch.arange(len(batch), device=batch.ids.device),
        target=moved[batch.target[scored]],
        source=moved[batch.source[scored]],
        sequence=batch.sequence[scored] // slots,
        index=batch.index,
        totals=batch.totals._replace(slot_tokens=batch.totals.slot_tokens[slot : slot + 1]),
        rows=batch.rows,
    )


def _moved(span: Tensor, moved: Tensor) -> Tensor:
    """Where spans of kept tokens lie afterwards; ``moved`` at a span's last token is the last token's new place."""
    ahead = torch.cat([moved.new_full((1,), -1), moved]) + 1  # kept tokens before each place
    return ahead[span]
