"""Hidden states of chosen layers at chosen tokens: for losses on hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from rlhf_lightning.types.ragged import Ragged


@dataclass
class LayerStates:
    """Hidden states after some decoder blocks, at some tokens of several responses, without padding.

    Layer ``l`` is the output of the ``l``-th block, counted from 1, before any final norm: ``hidden_states[l]`` of
    transformers, except after the last block, where transformers gives the normed state.
    """

    layers: tuple[int, ...]  #: numbers of the blocks, each once
    states: tuple[Float[Tensor, "state_tokens width"], ...]  #: of each layer; no copy of all of them together is made
    sequence: Int[Tensor, " state_tokens"]  #: which response a token belongs to: 0 .. count - 1, never decreasing
    count: int
    #: Mean number of these tokens in a response over the optimiser step; None: these responses are the whole step.
    mean_length: float | None = None

    def __post_init__(self) -> None:
        if len(self.states) != len(self.layers):
            raise ValueError(f"{len(self.states)} states for the {len(self.layers)} layers {self.layers}")

    def ragged(self, token: Float[Tensor, " state_tokens"]) -> Ragged:
        """One number for each of these tokens, in their layout."""
        return Ragged(token, self.sequence, self.count, self.mean_length)
