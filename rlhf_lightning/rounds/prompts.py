"""The endless stream of prompts, and the random streams that belong to its places."""

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
    prompt is left out because an epoch does not divide. A place in the stream names a pass and a prompt; what is drawn
    for it is a function of the seed and the place.

    Attributes:
        count: prompts of the data set.
        seed: of the orders and of what is drawn.
        shuffle: another order in every pass; else the data's own.
    """

    count: int
    seed: int
    shuffle: bool = True

    def take(self, start: int, count: int) -> IntArray:
        """Rows of the data set at the places ``start`` .. ``start + count - 1``."""
        places = np.arange(start, start + count, dtype=np.int64)
        passes, at = places // self.count, places % self.count
        if not self.shuffle:
            return at
        rows = np.empty_like(at)
        for number in np.unique(passes):
            mine = passes == number
            rows[mine] = self._order(int(number))[at[mine]]
        return rows

    def _order(self, number: int) -> IntArray:
        return np.random.default_rng(np.random.SeedSequence([self.seed, number])).permutation(self.count)

    def seeds(self, start: int, count: int) -> list[int]:
        """Of the random stream of each place."""
        return [stream_seed("rollout", self.seed, place) for place in range(start, start + count)]


@dataclass(frozen=True)
class PromptSource:
    """Where the prompts of rounds are from.

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
