"""Where rows come from: local files, the hub and files of this package; see :mod:`rlhf_lightning.data.mixture` too.

A source yields :class:`Row` objects one at a time and keeps for each the file and the row number it came from. Rows
are numbered from 1: lines of JSONL, elements of JSON, records of CSV (the header is not counted) and Parquet. What
cannot be read becomes a row with an ``error``; it is reported with its number and never stops the reading of others.
A source that can leave columns undecoded has a method ``using(columns)``.

Sources are plain classes on purpose: Hydra turns dataclass instances inside a config back into configs.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlhf_lightning.data.checks import DataError
from rlhf_lightning.data.readers import READER_VERSION, SUFFIXES, UNREAD, Reading, read_rows, suffix_of, until_damage

#: Files that ship with the package.
PACKAGED_FOLDER = Path(__file__).parent / "files"


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


class Files:
    """Local JSON, JSONL, CSV, TSV and Parquet files (text ones also gzipped), read row by row.

    Only a ``.json`` file is held in memory while it is read. A ``.json`` file that holds one object a line is read as
    JSONL.
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
        """Find the files; none of them is opened yet.

        Args:
            path: a file, a folder (all supported files below it, sorted), a glob, or a list of these.
            field: of a JSON file that is one object, the field that holds the rows; None: its only list.
            skip: rows to leave out at the beginning.
            limit: rows to read after that; None reads all.
            name: what reports call the files; None: their path.

        Raises:
            DataError: nothing is there, or a file has a suffix that no reader knows.
        """
        self.path = [path] if isinstance(path, str) else [str(part) for part in path]
        self.files = [found for part in self.path for found in _find(part)]
        self.field = field
        self.skip, self.limit = window(skip, limit)
        self._name = name
        self._used: Collection[str] | None = None

    @property
    def name(self) -> str:
        """The path as it was given."""
        return self._name or _printable(", ".join(self.path))

    def using(self, columns: Collection[str] | None) -> Files:
        """The same files; of columnar ones only these columns are decoded."""
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
        """Find the file.

        Args:
            name: its name without suffix.
            skip: rows to leave out at the beginning.
            limit: rows to read after that; None reads all.

        Raises:
            DataError: the package has no such file; the message lists those it has.
        """
        file = PACKAGED_FOLDER / f"{name}.jsonl"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in PACKAGED_FOLDER.glob("*.jsonl"))) or "none"
            raise DataError(f"data.source.name={name!r}: the package ships no such data set; it ships: {known}")
        super().__init__(str(file), skip=skip, limit=limit, name=f"packaged/{file.name}")


class Hub:
    """A data set of the Hugging Face hub, or anything else that ``datasets.load_dataset`` opens."""

    def __init__(
        self,
        id: str,  # noqa: A002  the hub's own word
        *,
        split: str = "train",
        config: str | None = None,
        revision: str | None = None,
        data_dir: str | None = None,
        data_files: str | Sequence[str] | Mapping[str, str] | None = None,
        streaming: bool = False,
        skip: int = 0,
        limit: int | None = None,
    ) -> None:
        """Describe the data set; nothing is downloaded yet.

        Args:
            id: ``owner/name``, a local folder (also one made by ``save_to_disk``), or a builder such as ``json``.
            split: split to read; the hub's slice syntax (``train[:1000]``) works unless ``streaming``.
            config: the data set's configuration.
            revision: commit, tag or branch. Pin it: it is part of what makes a run repeatable.
            data_dir: folder inside the data set.
            data_files: files inside the data set.
            streaming: read over the network while tokenising instead of downloading first.
            skip: rows to leave out at the beginning.
            limit: rows to read after that; None reads all.
        """
        self.id, self.split, self.config, self.revision, self.data_dir = id, split, config, revision, data_dir
        self.data_files = data_files if isinstance(data_files, str | None) else _plain(data_files)
        self.streaming = streaming
        self.skip, self.limit = window(skip, limit)
        self._loaded: Any = None
        self._used: Collection[str] | None = None

    def using(self, columns: Collection[str] | None) -> Hub:
        """The same data set, of which only these columns are decoded."""
        narrowed = copy(self)
        narrowed._used = columns
        return narrowed

    @property
    def name(self) -> str:
        """``owner/name[split]``."""
        parts = [self.id, *(part for part in (self.config, self.data_dir) if part)]
        return f"{'/'.join(parts)}[{self.split}]"

    def rows(self) -> Iterator[Row]:
        """Rows of the split in the data set's own order."""
        stop = None if self.limit is None else self.skip + self.limit
        for number, values, error in islice(until_damage(self._readings()), self.skip, stop):
            yield Row(self.name, number, values, error)

    def _readings(self) -> Iterator[Reading]:
        dataset, unread = self._dataset(), {}
        names = getattr(dataset, "column_names", None)
        if self._used is not None and names:
            unread = {name: UNREAD for name in names if name not in self._used}
            if 0 < len(unread) < len(names):
                dataset = dataset.select_columns([name for name in names if name not in unread])
        for number, values in enumerate(dataset, start=1):
            yield number, {**values, **unread} if unread else values, None

    def fingerprint(self) -> str | None:
        """Digest of the loaded table; of the pinned revision when streaming; None when streaming an open one."""
        if self.streaming and self.revision is None:
            return None
        state = "" if self.streaming else self._dataset()._fingerprint
        options = (self.id, self.config, self.split, self.revision, self.data_dir, self.data_files)
        return hashlib.sha256(repr((options, self.skip, self.limit, state)).encode()).hexdigest()

    def _dataset(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        import datasets  # about a second to import: only those who read the hub pay for it

        folder = Path(self.id)
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            return saved[self.split] if isinstance(saved, datasets.DatasetDict) else saved
        try:
            return datasets.load_dataset(
                self.id,
                self.config,
                split=self.split,
                revision=self.revision,
                data_dir=self.data_dir,
                data_files=self.data_files,
                streaming=self.streaming,
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            raise DataError(
                f"cannot load the data set {self.name}: {reason}\n"
                "Check data.source.id, data.source.split and the network (HF_HUB_OFFLINE, HF_ENDPOINT); "
                "local files are read with data=json data.source.path=FILE"
            ) from error


def validation_source(validation: Any) -> Any:
    """What ``data.validation`` gives: files where it is a path or a list of paths, else itself.

    Raises:
        DataError: there is nothing to read.
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
            "or a source of its own with its _target_; null: no validation"
        ) from error


def window(skip: int, limit: int | None) -> tuple[int, int | None]:
    """Return rows to leave out and rows to read, checked.

    Raises:
        DataError: a number is out of range.
    """
    if skip < 0 or (limit is not None and limit < 1):
        raise DataError(f"data.source.skip={skip} must be >= 0 and data.source.limit={limit} >= 1, or null")
    return skip, limit


def _printable(name: str) -> str:
    """A file's name as text: bytes of it that are no UTF-8 are shown as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _plain(files: Sequence[str] | Mapping[str, str]) -> list[str] | dict[str, str]:
    return dict(files.items()) if isinstance(files, Mapping) else list(files)


def _find(pattern: str) -> list[Path]:
    """Files that a path, folder or glob stands for, sorted."""
    path = Path(pattern).expanduser()
    if path.is_file():
        if suffix_of(path) is None:
            raise DataError(f"data.source.path={pattern}: no reader for this suffix; known: {', '.join(SUFFIXES)}")
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))
    files = sorted(file for file in found if file.is_file() and suffix_of(file) is not None)
    if not files:
        raise DataError(
            f"data.source.path={pattern}: nothing to read there from {Path.cwd()}; "
            f"files must end in {', '.join(SUFFIXES)}"
        )
    return files
