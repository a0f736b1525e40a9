"""Pairs of a benchmark, whose rows belong to subsets that are scored apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row, Source
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.sources.hub import Hub


class RewardBench:
    """RewardBench (arXiv:2403.13787) or a local file in its format: ``prompt``, ``chosen``, ``rejected``, ``subset``.

    Rows keep their id through tokenisation, so :meth:`subsets` says afterwards where each one belongs.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        id: str = "allenai/reward-bench",  # noqa: A002
        split: str = "filtered",
        subset: str = "subset",
        ties: Literal["half", "wrong"] = "half",
    ) -> None:
        """Find the source; nothing is read.

        Args:
            path: file, folder or glob; None: the hub's data set.
            id: of the data set on the hub.
            split: of that data set; ``filtered`` is the one that the published scores use.
            subset: column that names a row's subset.
            ties: a pair of equal rewards counts ``half``, or is ``wrong``, the published rule.

        Raises:
            DataError: nothing is at ``path``, or an unknown ``ties``.
        """
        if ties not in ("half", "wrong"):
            raise DataError(f"data.validation.ties={ties!r} is neither half nor wrong")
        self.source: Source = Hub(id, split=split) if path is None else Files(path)
        self.subset, self.ties = subset, ties

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    def rows(self) -> Iterator[Row]:
        """The source's rows; one without a subset is a row that cannot be used."""
        for row in self.source.rows():
            if row.error is None and not isinstance(row.values.get(self.subset), str):
                yield replace(row, values={}, error=f"the column {self.subset!r} must name the row's subset")
            else:
                yield row

    def subsets(self) -> dict[str, str]:
        """The subset of every row by its id; of a row that cannot be read the empty text."""
        return {row.id: str(row.values.get(self.subset, "")) for row in self.rows()}

    def fingerprint(self) -> str | None:
        """Of the source and the column."""
        inner = self.source.fingerprint()
        return None if inner is None else hashlib.sha256(repr((inner, "subsets", self.subset)).encode()).hexdigest()
