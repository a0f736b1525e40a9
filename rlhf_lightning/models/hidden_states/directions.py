"""Differences of hidden states, which steering vectors are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rlhf_lightning.models.hidden_states.layers import LayerActor, StateTokens
from rlhf_lightning.types import LayerStates, PackedBatch


@torch.no_grad()
def differences(
    actor: LayerActor, batches: Iterable[PackedBatch], layers: Sequence[int], tokens: StateTokens, limit: int
) -> dict[int, Tensor]:
    """States of each group's first response less those of its second one, by layer: ``[groups, width]`` in float32.

    Args:
        actor: whose states; in evaluation mode.
        batches: groups of two responses.
        layers: numbers of decoder blocks.
        tokens: where states are read; over a response they are averaged.
        limit: groups that are read, at most.
    """
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    groups = 0
    for batch in batches:
        states: LayerStates = actor(batch.to(next(actor.parameters()).device), layers=layers, tokens=tokens)
        for layer, mean in zip(layers, _means(states), strict=True):
            kept[layer].append((mean[0::2] - mean[1::2]).float().cpu())
        groups += len(batch)
        if groups >= limit:
            break
    return {layer: torch.cat(parts)[:limit] for layer, parts in kept.items()}


def _means(states: LayerStates) -> list[Tensor]:
    """The mean state of each response, by layer, in float64."""
    count = torch.bincount(states.sequence, minlength=states.count)[:, None]
    sums = (
        torch.zeros(states.count, state.shape[1], dtype=torch.float64, device=state.device).index_add_(
            0, states.sequence, state.double()
        )
        for state in states.states
    )
    return [each / count for each in sums]
