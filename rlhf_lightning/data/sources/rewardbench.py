"""Pairs of a benchmark whose rows belong to subsets with separate scores."""

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

    Rows keep their id through tokenisation, so :meth:`subsets` still tells the subset of each afterwards.
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
        """Set up the source; nothing is read yet.

        Args:
            path: file, folder or glob; None: the hub's data set.
            id: of the data set on the hub.
            split: of that data set; ``filtered`` is the one that the published scores use.
            subset: column that names a row's subset.
            ties: a pair of equal rewards counts ``half``, or is ``wrong``, the published rule.

        Raises:
            DataError: there is no file at ``path``, or ``ties`` is unknown.
        """
        if ties not in ("half", "wrong"):
            raise DataError(f"data.validation.ties={ties!r} is neither half nor wrong")
        self.source: Source = Hub(id, split=split) if path is None else Files(path)
        self.subset, self.ties = subset, ties

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    def rows(self) -> Iterator[Row]:
        """The source's rows; one without a subset has an error."""
        for row in self.source.rows():
            if row.error is None and not isinstance(row.values.get(self.subset), str):
                yield replace(row, values={}, error=f"the column {self.subset!r} must name the row's subset")
            else:
                yield row

    def subsets(self) -> dict[str, str]:
        """The subset of every row by the row's id; an empty text for a row that cannot be read."""
        return {row.id: str(row.values.get(self.subset, "")) for row in self.rows()}

    def fingerprint(self) -> str | None:
        """Digest of the source and the column."""
        inner = self.source.fingerprint()
        return None if inner is None else hashlib.sha256(repr((inner, "subsets", self.subset)).encode()).hexdigest()
