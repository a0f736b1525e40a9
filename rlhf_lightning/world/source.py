"""Rows of every kind, drawn by script from the base's own answers or from the grammar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.data.checks import DataError
from rlhf_lightning.data.sources import Row
from rlhf_lightning.world import kinds
from rlhf_lightning.world.base import TinyWorld
from rlhf_lightning.world.grammar import Split


class TinySource:
    """A data set of the tiny world, of whatever kind a method eats.

    Pairs, lists, labelled and rated answers are answers of the base itself, so they are on-policy at the first step;
    demonstrations, steps, paraphrases and contexts come from the grammar. The same arguments give the same rows. No
    prompt of ``split="validation"`` shares its subject with one of ``split="train"``.
    """

    def __init__(
        self,
        split: Split = "train",
        size: int = 3072,
        *,
        seed: int = 0,
        flips: float = 0.0,
        longest: int = 6,
        kind: str = "preference",
        base: TinyWorld | None = None,
    ) -> None:
        """Check the options; nothing is drawn yet.

        Args:
            split: ``train`` or ``validation``.
            size: rows.
            seed: of the draws. The base is another matter: its seed is ``base.seed``.
            flips: probability that a label is the wrong way round: the pair swapped, the answer's or the step's label
                turned over, the first two scores of a list exchanged.
            longest: responses of a ranked list at most; each list has 2 to this many.
            kind: of the rows; the data module asks for the one that the method eats.
            base: whose answers; None: the default base of ``model=tiny``.

        Raises:
            DataError: an option is out of range, or there is no such kind.
        """
        if split not in ("train", "validation"):
            raise DataError(f"data.source.split={split!r} is not one of train, validation")
        if size < 1 or not 0 <= flips <= 1 or longest < 2:
            raise DataError(
                f"data.source.size={size} must be at least 1, data.source.flips={flips} lie in [0, 1] and "
                f"data.source.longest={longest} be at least 2"
            )
        if kind not in kinds.ROWS:
            raise DataError(f"the tiny world has no data of kind {kind!r}; it has {', '.join(kinds.ROWS)}")
        self.split, self.size, self.seed, self.flips, self.longest = split, size, seed, flips, longest
        self.kind, self.base = kind, base or TinyWorld()

    def for_kind(self, kind: str) -> TinySource:
        """The same source with rows of another kind."""
        options: dict[str, Any] = {"seed": self.seed, "flips": self.flips, "longest": self.longest, "base": self.base}
        return TinySource(self.split, self.size, kind=kind, **options)

    @property
    def name(self) -> str:
        """What reports call this source."""
        return f"tiny/{self.kind}/{self.split}"

    def rows(self) -> Iterator[Row]:
        """The rows; trains and samples the base on the first use."""
        options = kinds.Options(self.size, self.seed, self.flips, self.longest)
        for number, values in enumerate(kinds.draw(self.kind, self.base, self.split, options), start=1):
            yield Row(self.name, number, values)

    def fingerprint(self) -> str:
        """Digest of what the rows follow from."""
        state: Mapping[str, Any] = {
            "version": kinds.ROWS_VERSION,
            "base": self.base.digest(),
            "options": [self.split, self.kind, self.size, self.seed, self.flips, self.longest],
        }
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
