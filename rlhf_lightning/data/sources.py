"""Where rows come from: local files, the hub, files of this package, and mixtures.

A source yields :class:`Row` objects one at a time and keeps for each the file and the row number it came from. Rows
are numbered from 1: lines of JSONL, elements of JSON, records of CSV (the header is not counted) and Parquet. What
cannot be read becomes a row with an ``error``; it is reported with its number and never stops the reading of others.

Sources are plain classes on purpose: Hydra turns dataclass instances inside a config back into configs.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from rlhf_lightning.data.checks import DataError
from rlhf_lightning.data.readers import READER_VERSION, SUFFIXES, read_rows, suffix_of

#: Files that ship with the package.
PACKAGED_FOLDER = Path(__file__).parent / "files"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source and where it was found."""

    file: str
    number: int  #: from 1
    values: Mapping[str, Any]
    error: str | None = None  #: why the row could not be read; ``values`` is then empty

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
        self.skip, self.limit = _window(skip, limit)
        self._name = name

    @property
    def name(self) -> str:
        """The path as it was given."""
        return self._name or ", ".join(self.path)

    def _label(self, file: Path) -> str:
        return self._name if self._name and len(self.files) == 1 else str(file)

    def rows(self) -> Iterator[Row]:
        """Rows of all files, file by file."""
        return islice(self._all(), self.skip, None if self.limit is None else self.skip + self.limit)

    def _all(self) -> Iterator[Row]:
        for file in self.files:
            label = self._label(file)
            for number, values, error in read_rows(file, self.field):
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
        self.skip, self.limit = _window(skip, limit)
        self._loaded: Any = None

    @property
    def name(self) -> str:
        """``owner/name[split]``."""
        parts = [self.id, *(part for part in (self.config, self.data_dir) if part)]
        return f"{'/'.join(parts)}[{self.split}]"

    def rows(self) -> Iterator[Row]:
        """Rows of the split in the data set's own order."""
        stop = None if self.limit is None else self.skip + self.limit
        numbered = enumerate(self._dataset(), start=1)
        for number, values in islice(numbered, self.skip, stop):
            yield Row(self.name, number, values)

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


class Mixture:
    """Several sources drawn in turn, each with a share.

    Every row's source is drawn with probability weight / sum of weights from one seeded generator; within a source,
    rows come in their order. ``stop=shortest`` ends when the source that was drawn has no row left, so no row comes
    twice and the shares hold. ``stop=longest`` starts a source again when it is used up and ends when each has been
    read once: small sources are repeated.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float] | None = None,
        *,
        columns: Mapping[str, Mapping[str, str]] | None = None,
        seed: int = 0,
        stop: Literal["shortest", "longest"] = "shortest",
        limit: int | None = None,
    ) -> None:
        """Check the shares; no source is read yet.

        Args:
            sources: sources by a name of your choice.
            weights: shares by the same names, any positive scale; None: equal shares.
            columns: column maps (our name -> theirs) by the same names, for sources whose columns differ.
            seed: of the draws.
            stop: ``shortest`` or ``longest``.
            limit: rows to draw in all; None: until ``stop``.

        Raises:
            DataError: names do not agree, a weight is not positive, or ``stop`` is unknown.
        """
        self.sources = dict(sources.items())
        self.weights = dict.fromkeys(self.sources, 1.0) if weights is None else dict(weights.items())
        self.columns = {name: dict(mapping) for name, mapping in (columns or {}).items()}
        if not self.sources or set(self.weights) != set(self.sources) or set(self.columns) - set(self.sources):
            raise DataError(
                f"data.source.weights and .columns must use the names of data.source.sources: {sorted(self.sources)}; "
                f"weights has {sorted(self.weights)}, columns {sorted(self.columns)}"
            )
        if bad := {name: weight for name, weight in self.weights.items() if not weight > 0}:
            raise DataError(f"data.source.weights must be positive (remove a source to leave it out): {bad}")
        if stop not in ("shortest", "longest"):
            raise DataError(f"data.source.stop={stop!r} is not one of shortest, longest")
        self.seed, self.stop = seed, stop
        self.limit = _window(0, limit)[1]

    @property
    def name(self) -> str:
        """Shares and names of the parts."""
        total = sum(self.weights.values())
        return " + ".join(f"{self.weights[name] / total:.0%} {name}" for name in self.sources)

    def for_kind(self, kind: str) -> Mixture:
        """The same shares of the sources of a kind; see the function of this name."""
        sources = {name: for_kind(source, kind) for name, source in self.sources.items()}
        return Mixture(sources, self.weights, columns=self.columns, seed=self.seed, stop=self.stop, limit=self.limit)

    def rows(self) -> Iterator[Row]:
        """The drawn rows, each with the provenance it has in its own source."""
        return islice(self._draw(), self.limit)

    def _draw(self) -> Iterator[Row]:
        names = list(self.sources)
        share = np.array([self.weights[name] for name in names], dtype=np.float64)
        generator = np.random.default_rng(self.seed)
        running = {name: self._renamed(name) for name in names}
        finished: set[str] = set()
        while True:
            for drawn in generator.choice(len(names), size=1024, p=share / share.sum()):
                name = names[drawn]
                row = next(running[name], None)
                if row is None:
                    finished.add(name)
                    if self.stop == "shortest" or len(finished) == len(names):
                        return
                    running[name] = self._renamed(name)
                    row = next(running[name], None)
                    if row is None:
                        raise DataError(f"{self.sources[name].name} holds no rows; remove it from data.source.sources")
                yield row

    def _renamed(self, name: str) -> Iterator[Row]:
        columns = self.columns.get(name, {})
        for row in self.sources[name].rows():
            renamed = {ours: row.values[theirs] for ours, theirs in columns.items() if theirs in row.values}
            kept = {column: value for column, value in row.values.items() if column not in columns.values()}
            yield replace(row, values={**kept, **renamed}) if columns else row

    def fingerprint(self) -> str | None:
        """Digest of the parts' digests and the shares; None when a part has none."""
        parts = {name: source.fingerprint() for name, source in self.sources.items()}
        if None in parts.values():
            return None
        state = [parts, self.weights, self.columns, self.seed, self.stop, self.limit]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _window(skip: int, limit: int | None) -> tuple[int, int | None]:
    if skip < 0 or (limit is not None and limit < 1):
        raise DataError(f"data.source.skip={skip} must be >= 0 and data.source.limit={limit} >= 1, or null")
    return skip, limit


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
