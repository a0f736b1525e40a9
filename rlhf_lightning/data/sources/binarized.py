"""Pairs as statements about quality: the data of a binarised preference-model pre-training stage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row, Source, for_kind


class Binarized:
    """A source that makes two pairs of each pair: each response with the right label against the wrong one.

    A pair of a better response A and a worse one B gives "A, good" over "A, bad", and "B, bad" over "B, good". A model
    that learns from them judges a response by itself, and the two comparisons are independent of each other.

    Both columns hold texts, or messages; the label is put behind the last message.
    """

    def __init__(
        self,
        source: Source,
        *,
        good: str = "\nGOOD",
        bad: str = "\nBAD",
        chosen: str = "chosen",
        rejected: str = "rejected",
    ) -> None:
        """Check the labels; nothing is read.

        Args:
            source: of pairs.
            good: put behind a response to say that it is good.
            bad: put behind a response to say that it is bad.
            chosen: name of the data's column of better responses; the new rows have ``chosen`` and ``rejected``.
            rejected: name of the data's column of worse ones.

        Raises:
            DataError: both labels are the same.
        """
        if good == bad:
            raise DataError(f"data.source.good and data.source.bad are both {good!r}; they must differ")
        self.source, self.good, self.bad = source, good, bad
        self.columns = (chosen, rejected)

    @property
    def name(self) -> str:
        """Name of the source, marked as binarized."""
        return f"{self.source.name}, binarized"

    def for_kind(self, kind: str) -> Binarized:
        """Return the pairs, whatever kind the method learns from."""
        pairs = for_kind(self.source, "preference")
        return Binarized(pairs, good=self.good, bad=self.bad, chosen=self.columns[0], rejected=self.columns[1])

    def rows(self) -> Iterator[Row]:
        """Two rows for each row of the source, under the same provenance."""
        for row in self.source.rows():
            if row.error is not None:
                yield row
                continue
            try:
                chosen, rejected = (row.values[name] for name in self.columns)
                pairs = [
                    (_labelled(chosen, self.good), _labelled(chosen, self.bad)),
                    (_labelled(rejected, self.bad), _labelled(rejected, self.good)),
                ]
            except (KeyError, TypeError, IndexError):
                yield replace(row, error=f"{' and '.join(self.columns)} must be texts or lists of messages", values={})
                continue
            for better, worse in pairs:
                yield replace(row, values={**row.values, "chosen": better, "rejected": worse})

    def fingerprint(self) -> str | None:
        """Digest of the source and the labels."""
        inner = self.source.fingerprint()
        if inner is None:
            return None
        return hashlib.sha256(repr((inner, "binarized", self.good, self.bad, self.columns)).encode()).hexdigest()


def _labelled(response: Any, label: str) -> Any:
    """A text, or messages whose last one is the response, with a label behind the response."""
    if isinstance(response, str):
        return response + label
    last = response[-1]
    return [*response[:-1], {**last, "content": last["content"] + label}]
