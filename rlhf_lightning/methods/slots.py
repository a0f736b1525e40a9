"""The slots of a batch's groups: numbers as a table, and a batch with one of its slots only."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.types import PackedBatch


def by_group(values: Tensor, batch: PackedBatch) -> Tensor:
    """Numbers of the responses as one row a group: ``[groups, slots]``, with any other dimensions behind."""
    return values.reshape(len(batch), batch.slots, *values.shape[1:])


def only_slot(batch: PackedBatch, *chosen: int) -> PackedBatch:
    """The prompts and responses of one slot, or of some, as if the others had never been packed.

    Args:
        batch: groups of as many prompts as slots, each prompt with one response.
        chosen: which slots, from 0, rising.

    Raises:
        ValueError: prompts have several responses.
    """
    slots = batch.slots
    if len(batch.prompt_span) != len(batch.response_span):
        raise ValueError(f"{len(batch.prompt_span)} prompts with {len(batch.response_span)} responses: not one each")
    device = batch.ids.device
    wanted = torch.zeros(slots, dtype=torch.bool, device=device)
    wanted[list(chosen)] = True
    starts = batch.prompt_span[:, 0].contiguous()
    at = torch.arange(len(batch.ids), device=device)
    kept = wanted[(torch.searchsorted(starts, at, right=True) - 1) % slots]
    moved = torch.cumsum(kept, 0) - 1  # where each kept token goes
    in_slot = wanted[batch.sequence % slots]
    responses = wanted.repeat(len(batch))
    renumbered = torch.cumsum(responses, 0) - 1
    return PackedBatch(
        ids=batch.ids[kept],
        positions=batch.positions[kept],
        prompt_span=_moved(batch.prompt_span[responses], moved),
        response_span=_moved(batch.response_span[responses], moved),
        parent=torch.arange(len(batch) * len(chosen), device=device),
        target=moved[batch.target[in_slot]],
        source=moved[batch.source[in_slot]],
        sequence=renumbered[batch.sequence[in_slot]],
        index=batch.index,
        totals=batch.totals._replace(slot_tokens=tuple(batch.totals.slot_tokens[slot] for slot in chosen)),
        rows=batch.rows,
    )


def _moved(span: Tensor, moved: Tensor) -> Tensor:
    """Spans of kept tokens at their new positions; ``moved`` at a span's last token is its new position."""
    ahead = torch.cat([moved.new_full((1,), -1), moved]) + 1  # kept tokens before each position
    return ahead[span]
