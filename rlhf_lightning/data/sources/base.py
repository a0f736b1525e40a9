"""What a source of rows is: the protocol, the row, and what a source may have beside it.

A source yields :class:`Row` objects one at a time and keeps for each the file and the row number it came from. Rows
are numbered from 1: lines of JSONL, elements of JSON, records of CSV (the header is not counted) and Parquet. What
cannot be read becomes a row with an ``error``; it is reported with its number and never stops the reading of others.
A source that can leave columns undecoded has a method ``using(columns)``.

Sources are plain classes on purpose: Hydra turns dataclass instances inside a config back into configs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rlhf_lightning.data.rows.problems import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source and where it was found."""

    file: str
    number: int  #: from 1
    values: Mapping[str, Any]
    error: str | None = None  #: why the row could not be read; ``values`` is then empty
    part: str = ""  #: of a mixture, the name of the row's source
    #: Our names of columns that a mixture maps and the row does not have, with the names that were looked for.
    unmapped: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """``file:row``."""
        return f"{self.file}:{self.number}"


@runtime_checkable
class Source(Protocol):
    """Anything that yields rows, in the same order every time."""

    @property
    def name(self) -> str:
        """What reports call this source."""

    def rows(self) -> Iterator[Row]:
        """All rows, from the beginning."""

    def fingerprint(self) -> str | None:
        """Digest of the rows and their provenance; None when it cannot be known without reading them twice."""


def for_kind(source: Source, kind: str) -> Source:
    """The source of rows of a kind, where a source has several; else the source itself.

    A source with a method ``for_kind(kind)`` is asked; the tiny world draws what each method learns from.
    """
    asked: Source = source.for_kind(kind) if hasattr(source, "for_kind") else source
    return asked


def using(source: Source, columns: Collection[str] | None) -> Source:
    """The source with columns that nobody uses left undecoded, where it can; ``columns=None`` uses all of them."""
    narrowed: Source = source.using(columns) if hasattr(source, "using") else source
    return narrowed


def window(skip: int, limit: int | None) -> tuple[int, int | None]:
    """Return rows to leave out and rows to read, checked.

    Raises:
        DataError: a number is out of range.
    """
    if skip < 0 or (limit is not None and limit < 1):
        raise DataError(f"data.source.skip={skip} must be >= 0 and data.source.limit={limit} >= 1, or null")
    return skip, limit
