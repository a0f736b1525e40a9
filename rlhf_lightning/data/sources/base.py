"""Sources of rows: the protocol, the row, and optional methods of sources.

A source yields :class:`Row` objects one at a time, each with the file and row number that it came from. Rows are
numbered from 1: lines of JSONL, elements of JSON, records of CSV (without the header) and Parquet. A row that cannot be
read has an ``error``; it is reported with its number, and reading continues. A source that can leave columns undecoded
has a method ``using(columns)``.

Sources are plain classes, because Hydra turns dataclass instances inside a configuration back into configurations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rlhf_lightning.data.rows.problems import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source, with its file and number."""

    file: str
    number: int  #: from 1
    values: Mapping[str, Any]
    error: str | None = None  #: why the row could not be read; ``values`` is then empty
    part: str = ""  #: of a mixture, the name of the row's source
    #: Our names of columns that a mixture maps and the row lacks, with the data's names.
    unmapped: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """``file:row``."""
        return f"{self.file}:{self.number}"


@runtime_checkable
class Source(Protocol):
    """An object that yields rows, in the same order every time."""

    @property
    def name(self) -> str:
        """Name of this source in reports."""

    def rows(self) -> Iterator[Row]:
        """All rows, from the beginning."""

    def fingerprint(self) -> str | None:
        """Digest of the rows and their provenance; None when it cannot be known without reading them twice."""


def for_kind(source: Source, kind: str) -> Source:
    """Return the source's rows of a kind, where it has a method ``for_kind(kind)``; else the source itself.

    The tiny world has one: it draws the kind of data that each method learns from.
    """
    of_kind: Source = source.for_kind(kind) if hasattr(source, "for_kind") else source
    return of_kind


def using(source: Source, columns: Collection[str] | None) -> Source:
    """Return the source with unused columns left undecoded, where it can do so; ``columns=None`` uses all of them."""
    narrowed: Source = source.using(columns) if hasattr(source, "using") else source
    return narrowed


def window(skip: int, limit: int | None) -> tuple[int, int | None]:
    """Check and return the number of rows to skip and the number of rows to read.

    Raises:
        DataError: a number is out of range.
    """
    if skip < 0 or (limit is not None and limit < 1):
        raise DataError(f"data.source.skip={skip} must be >= 0, and data.source.limit={limit} must be >= 1 or null")
    return skip, limit
