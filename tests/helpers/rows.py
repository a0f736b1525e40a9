"""Rows in memory, and where the shared data files lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.data.sources.base import Row

_FOLDER = Path(os.environ.get("RLHF_SHARED_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


class Rows:
    """A source of rows in memory."""

    name = "rows"

    def __init__(self, *rows: Mapping[str, Any]) -> None:
        self._rows: Sequence[Mapping[str, Any]] = rows

    def rows(self) -> Iterator[Row]:
        for number, values in enumerate(self._rows, start=1):
            yield Row("rows", number, values)

    def fingerprint(self) -> None:
        return None


def shared_file(name: str) -> str:
    """Path of a shared data file; the test is skipped where it is absent."""
    file = _FOLDER / name
    if not file.is_file():
        pytest.skip(f"{name} is not in {_FOLDER}; set RLHF_SHARED_DATA to the folder that holds it")
    return str(file)
