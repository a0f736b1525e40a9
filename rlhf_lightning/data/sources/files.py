"""Rows of local files, and of those that ship with the package."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_lightning.data.rows.file_readers import READER_VERSION, SUFFIXES, read_rows, suffix_of
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row, window

#: Files that ship with the package.
PACKAGED_FOLDER = Path(__file__).parents[1] / "files"


class Files:
    """Local JSON, JSONL, CSV, TSV and Parquet files (text ones also gzipped), read row by row.

    Only a ``.json`` file is held in memory while it is read. A ``.json`` file with one object a line is read as JSONL.
    """

    def __init__(
        self,
        path: str | Sequence[str],
        *,
        field: str | None = None,
        skip: int = 0,
        limit: int | None = None,
        name: str | None = None,
    ) -> None:
        """List the files; none of them is opened yet.

        Args:
            path: a file, a folder (all supported files below it, sorted), a glob, or a list of these.
            field: of a JSON file that is one object, the field that holds the rows; None: its only list.
            skip: rows to leave out at the beginning.
            limit: rows to read after that; None reads all.
            name: of the files in reports; None: their path.

        Raises:
            DataError: there is no file, or no reader supports the suffix of one.
        """
        self.path = [path] if isinstance(path, str) else [str(part) for part in path]
        self.files = [file for part in self.path for file in _find(part)]
        self.field = field
        self.skip, self.limit = window(skip, limit)
        self._name = name
        self._used: Collection[str] | None = None

    @property
    def name(self) -> str:
        """The name that was given, or the path."""
        return self._name or _printable(", ".join(self.path))

    def using(self, columns: Collection[str] | None) -> Files:
        """Return the same files with only these columns decoded, where a format is columnar."""
        narrowed = copy(self)
        narrowed._used = columns
        return narrowed

    def _label(self, file: Path) -> str:
        return self._name if self._name and len(self.files) == 1 else _printable(str(file))

    def rows(self) -> Iterator[Row]:
        """Rows of all files, file by file."""
        return islice(self._all(), self.skip, None if self.limit is None else self.skip + self.limit)

    def _all(self) -> Iterator[Row]:
        for file in self.files:
            label = self._label(file)
            for number, values, error in read_rows(file, self.field, self._used):
                yield Row(label, number, values, error)

    def fingerprint(self) -> str:
        """Digest of the files' bytes, their names and the options."""
        digest = hashlib.sha256(repr((READER_VERSION, self.field, self.skip, self.limit)).encode())
        for file in self.files:
            digest.update(self._label(file).encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()


class Packaged(Files):
    """A data set that ships with the package."""

    def __init__(self, name: str, *, skip: int = 0, limit: int | None = None) -> None:
        """Look up the file.

        Args:
            name: of the file, without its suffix.
            skip: rows to leave out at the beginning.
            limit: rows to read after that; None reads all.

        Raises:
            DataError: the package has no such file; the message lists those it has.
        """
        file = PACKAGED_FOLDER / f"{name}.jsonl"
        if not file.is_file():
            names = ", ".join(sorted(path.stem for path in PACKAGED_FOLDER.glob("*.jsonl"))) or "none"
            raise DataError(f"data.source.name={name!r}: the package ships no such data set; it ships: {names}")
        super().__init__(str(file), skip=skip, limit=limit, name=f"packaged/{file.name}")


def validation_source(validation: Any) -> Any:
    """Return the source that ``data.validation`` names: files where it is a path or a list of paths, else itself.

    Raises:
        DataError: there is no file to read.
    """
    paths = [validation] if isinstance(validation, str) else validation
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        return validation
    try:
        return Files(paths)
    except DataError as error:
        reason = str(error).removeprefix("data.source.path=")
        raise DataError(
            f"data.validation={reason}\n  data.validation is the share of prompts kept for validation (0.05), a file, "
            "or a separate source with its _target_; null: no validation"
        ) from error


def _printable(name: str) -> str:
    """A file's name as text, with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _find(pattern: str) -> list[Path]:
    """Files at a path, below a folder or of a glob, sorted."""
    path = Path(pattern).expanduser()
    if path.is_file():
        if suffix_of(path) is None:
            raise DataError(f"data.source.path={pattern}: no reader for this suffix; supported: {', '.join(SUFFIXES)}")
        return [path]
    candidates = path.rglob("*") if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))
    files = sorted(file for file in candidates if file.is_file() and suffix_of(file) is not None)
    if not files:
        raise DataError(
            f"data.source.path={pattern}: no file to read (from {Path.cwd()}); files must end in {', '.join(SUFFIXES)}"
        )
    return files
