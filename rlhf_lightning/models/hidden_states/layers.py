"""Hidden states of chosen layers: an actor that reads them, and how a forward pass ends at the last one that is read.

For one forward pass the trunk's list of blocks is a shorter one, whose read blocks are wrapped: blocks above are never
entered, and of what a read block gives only the chosen tokens are kept. The blocks themselves stay as they are, so
sharding, activation checkpointing and adapters act as in any other pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.blocks import block_list, check_layers
from rlhf_lightning.types import LayerStates, PackedBatch

#: Tokens whose states are read: the scored ones of a response, or the last one of its prompt.
StateTokens = Literal["response", "last_prompt"]


class LayerActor(Actor):
    """An actor that also gives hidden states of chosen layers, without running the layers above them."""

    def forward(
        self,
        batch: PackedBatch,
        *,
        layers: Sequence[int] = (),
        tokens: StateTokens = "response",
        adapter: bool = True,
        **options: Any,
    ) -> Any:
        """Log-probs as of an :class:`~rlhf_lightning.models.actor.Actor`, or with ``layers`` hidden states.

        Args:
            batch: packed prompts and responses, on the model's device.
            layers: numbers of decoder blocks, from 1, whose outputs are read; none: log-probs.
            tokens: where they are read.
            adapter: False computes with the adapter disabled.
            options: of the log-probs.

        Returns:
            Log-probs; with ``layers`` a :class:`~rlhf_lightning.types.LayerStates`.

        Raises:
            ValueError: the model has no such layer.
        """
        if not layers:
            return super().forward(batch, adapter=adapter, **options)
        with self.adapter_switched(adapter):
            return layer_states(self, batch, layers, tokens)


def layer_states(
    backbone: Backbone, batch: PackedBatch, layers: Sequence[int], tokens: StateTokens = "response"
) -> LayerStates:
    """Hidden states of some layers at the batch's responses, from one pass that ends at the highest of them.

    Called within a backbone's own ``forward``, where FSDP2 has gathered the weights.

    Args:
        backbone: whose states.
        batch: packed prompts and responses.
        layers: numbers of decoder blocks, from 1.
        tokens: where they are read.

    Raises:
        ValueError: the model has no such layer.
    """
    source, sequence, mean_length = _chosen(batch, tokens)
    with _first_blocks(backbone.trunk, layers, lambda state: backbone.at(state, batch, source, sequence)) as states:
        backbone.trunk_states(batch)
    by_layer = tuple(states[layer] for layer in layers)
    return LayerStates(tuple(layers), by_layer, sequence, len(batch.response_span), mean_length)


def _chosen(batch: PackedBatch, tokens: StateTokens) -> tuple[Tensor, Tensor, float | None]:
    """Indices of the tokens, the response of each, and how many a response has over the optimiser step."""
    if tokens == "response":
        return batch.target, batch.sequence, batch.totals.mean_length()
    sequence = batch.present.nonzero().squeeze(1)
    return batch.prompt_span[batch.parent[sequence], 1] - 1, sequence, None


@contextmanager
def _first_blocks(
    trunk: nn.Module, layers: Sequence[int], take: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, Tensor]]:
    """A trunk that ends at the highest of some layers for a while; what ``take`` makes of each, by its number."""
    holder, name, blocks = block_list(trunk)
    check_layers("layers", layers, len(blocks))
    states: dict[int, Tensor] = {}
    read = [
        _Read(block, take, states, number) if number in layers else block
        for number, block in enumerate(blocks[: max(layers)], start=1)
    ]
    holder._modules[name] = nn.ModuleList(read)
    try:
        yield states
    finally:
        holder._modules[name] = blocks


class _Read(nn.Module):
    """A block whose output is recorded; every other attribute is the block's."""

    def __init__(
        self, block: nn.Module, take: Callable[[Tensor], Tensor], states: dict[int, Tensor], number: int
    ) -> None:
        super().__init__()
        self.block, self.take, self.states, self.number = block, take, states, number

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output."""
        output = self.block(*args, **kwargs)
        self.states[self.number] = self.take(output[0] if isinstance(output, tuple) else output)
        return output
