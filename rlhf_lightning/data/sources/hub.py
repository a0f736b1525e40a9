"""Rows of data sets that ``datasets`` opens, such as those of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_lightning.data.rows.file_readers import UNREAD, Reading, until_damage
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row, window


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
            revision: commit, tag or branch. Pin it to make the run repeatable.
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
        """Return the same data set with only these columns decoded."""
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
        """Digest of the loaded table; of the revision when streaming; None when streaming without a revision."""
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
        import datasets  # takes about a second to import, so it is imported only where it is needed

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


def _plain(files: Sequence[str] | Mapping[str, str]) -> list[str] | dict[str, str]:
    return dict(files.items()) if isinstance(files, Mapping) else list(files)
