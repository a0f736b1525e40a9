"""A JSONL file that grows row by row and survives a kill, so that its rows need not be computed again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO


class Journal:
    """Rows by key, in the order in which they were added; used as a context manager.

    A last line that a kill left unfinished is cut off.

    Args:
        file: path of the file, created if missing.

    Raises:
        ValueError: a line in the middle of the file is not a row of a journal.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: dict[str, dict[str, Any]] = {}
        self._handle: TextIO | None = None

    def __enter__(self) -> Journal:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read()
        self._handle = self.file.open("a", encoding="utf-8")
        self._handle.truncate(whole)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def add(self, key: str, values: Mapping[str, Any]) -> None:
        """Append a row and flush it to disk."""
        assert self._handle is not None
        row = {"key": key, **values}
        self._handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self.rows[key] = json.loads(json.dumps(row))

    def _read(self) -> int:
        """Read the rows of the file; return the number of bytes of complete rows."""
        if not self.file.exists():
            return 0
        whole = 0
        for number, line in enumerate(self.file.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.file}:{number} is not a row of such a file: choose another file") from error
            whole += len(line)
        return whole
