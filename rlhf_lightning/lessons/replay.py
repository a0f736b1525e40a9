"""Groups of the data added to those of a round: an exact share, other prompts, no row twice in a pass."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.lessons.tokens import IntArray
from rlhf_lightning.ops.streams import stream_seed

if TYPE_CHECKING:
    from rlhf_lightning.data.module import AlignmentDataModule


@dataclass
class Replay:
    r"""Offline groups for rounds: of :math:`n` groups that rounds have made :math:`n\gamma / (1 - \gamma)` come along.

    That many, rounded to whole groups, over all rounds so far: what one round is short of by rounding the next one
    brings. Rows come in a random order, pass after pass; one whose prompt the round has drawn for, or carries along
    from an earlier one, is left out, and comes again in the next pass.

    Source: "Bootstrapping Language Models with DPO Implicit Rewards" (DICE), arXiv:2406.09760, experience replay.
    Differences: its code sets the groups made by the size of the offline data; here rounds keep their size.

    Attributes:
        share: :math:`\gamma`, of all groups trained on, in [0, 1).
        data: rows of the kind that the method learns from; read by :meth:`prepare`.
        seed: of the orders.
        position: of the next row in the stream of passes.
        made: groups of all rounds so far.
        replayed: groups that came along so far.
    """

    share: float
    data: AlignmentDataModule
    seed: int = 0
    position: int = field(default=0, init=False)
    made: int = field(default=0, init=False)
    replayed: int = field(default=0, init=False)

    @property
    def examples(self) -> Examples:
        """All groups of the data."""
        assert self.data.train_examples is not None, "prepare() reads the data"
        return self.data.train_examples

    def prepare(self, drawn: Collection[bytes]) -> None:
        """Read the data, and refuse it where a round would lack groups.

        Args:
            drawn: tokens of the prompts of the first round.

        Raises:
            ValueError: there are too few groups with other prompts, or none of the kind.
        """
        self.data.setup("fit")
        wanted = self._wanted(len(drawn))
        usable = sum(self._prompt(row) not in drawn for row in range(len(self.examples)))
        if usable < wanted:
            raise ValueError(self._too_few(wanted, usable))

    def take(self, made: int, drawn: Collection[bytes]) -> IntArray:
        """Rows that come with the next round.

        Args:
            made: groups of the round.
            drawn: tokens of its prompts, those of rounds that are carried along among them.

        Raises:
            ValueError: there are too few groups with other prompts.
        """
        count, size = self._wanted(self.made + made) - self.replayed, len(self.examples)
        rows: dict[int, None] = {}
        position, orders = self.position, dict[int, IntArray]()
        while len(rows) < count:
            if position - self.position >= 2 * size:  # every row has come at least once
                raise ValueError(self._too_few(count, len(rows)))
            number, at = divmod(position, size)
            if number not in orders:
                orders[number] = self._order(number)
            if self._prompt(row := int(orders[number][at])) not in drawn:
                rows.setdefault(row)
            position += 1
        self.position, self.made, self.replayed = position, self.made + made, self.replayed + count
        return np.array(list(rows), dtype=np.int64)

    def _wanted(self, made: int) -> int:
        """Number of offline groups that go with so many of rounds."""
        return math.floor(made * self.share / (1 - self.share) + 0.5)

    def _order(self, number: int) -> IntArray:
        seed = stream_seed("replay", self.seed, number)
        return np.random.default_rng(seed).permutation(len(self.examples)).astype(np.int64)

    def _prompt(self, row: int) -> bytes:
        start, end = self.examples.bounds[row, :2].tolist()
        return self.examples.tokens[start:end].tobytes()

    def _too_few(self, wanted: int, usable: int) -> str:
        return (
            f"rounds.replay={self.share:g} mixes {wanted} groups of the data into a round, and {usable} of its "
            f"{len(self.examples)} have a prompt that is not in the round: lower rounds.replay, rounds.minibatches or "
            "data.batch_size, or bring more data"
        )

    # Checkpoints

    def state_dict(self) -> dict[str, int]:
        """Plain numbers."""
        return {"place": self.position, "made": self.made, "replayed": self.replayed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.position, self.made, self.replayed = state["place"], state["made"], state["replayed"]


def prompt_tokens(ids: Collection[int]) -> bytes:
    """A prompt as :class:`Replay` compares it."""
    return np.array(ids, dtype=np.int32).tobytes()


def prompts_among(examples: Examples, rows: IntArray) -> set[bytes]:
    """The different prompts of some rows, as :class:`Replay` compares them."""
    return {prompt_tokens(examples.tokens[start:end]) for start, end in examples.bounds[rows, :2].tolist()}
