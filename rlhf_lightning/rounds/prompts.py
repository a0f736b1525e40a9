"""The endless stream of prompts, and the random streams that belong to its positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.ops.streams import stream_seed

if TYPE_CHECKING:
    from rlhf_lightning.data.tokens.examples import Examples

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class PromptStream:
    """Every prompt once, in one order, then every prompt again in another one, without end.

    Rollouts take the next prompts wherever the last one stopped, also those that dynamic filtering asks for, so no
    prompt is left out because an epoch does not divide. A position in the stream names a pass and a prompt; the
    samples drawn for it are a function of the seed and the position.

    Attributes:
        count: prompts of the data set.
        seed: of the orders and of the samples.
        shuffle: another order in every pass; else the data's own.
    """

    count: int
    seed: int
    shuffle: bool = True

    def take(self, start: int, count: int) -> IntArray:
        """Rows of the data set at the positions ``start`` .. ``start + count - 1``."""
        positions = np.arange(start, start + count, dtype=np.int64)
        passes, at = positions // self.count, positions % self.count
        if not self.shuffle:
            return at
        rows = np.empty_like(at)
        for number in np.unique(passes):
            in_pass = passes == number
            rows[in_pass] = self._order(int(number))[at[in_pass]]
        return rows

    def _order(self, number: int) -> IntArray:
        return np.random.default_rng(np.random.SeedSequence([self.seed, number])).permutation(self.count)

    def seeds(self, start: int, count: int) -> list[int]:
        """Seeds of the random stream of each position."""
        return [stream_seed("rollout", self.seed, position) for position in range(start, start + count)]


@dataclass(frozen=True)
class PromptSource:
    """Source of the prompts of rounds.

    Attributes:
        examples: the data set.
        stream: the order that it is gone through in.
        size: prompts of a round.
    """

    examples: Examples
    stream: PromptStream
    size: int

    def ids(self, start: int) -> list[bytes]:
        """The tokens of a round's first prompts."""
        rows = self.stream.take(start, self.size)
        return [self.examples.tokens[start:end].tobytes() for start, end in self.examples.bounds[rows, :2].tolist()]
