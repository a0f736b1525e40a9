"""The files of the reference cache: immutable shards, and the sorted index over all of them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

KEY_BYTES = 16
KEY_TYPE = f"S{KEY_BYTES}"
#: Fixed-width byte strings: they sort and compare like the digests that they hold.
Keys = NDArray[np.bytes_]
#: Changes with the layout of shards or the definition of keys.
FORMAT = "rlhf-reference-1"
#: Columns of a shard other than the log-probs, in the order of their digest.
_COLUMNS = ("keys", "lengths", "checksums")


class ReferenceCacheError(RuntimeError):
    """The reference cache is incomplete, damaged or of another model; the message has the fix."""


def damaged(shard: Path, why: str) -> ReferenceCacheError:
    """The error for a shard that cannot be trusted."""
    return ReferenceCacheError(f"{shard} is damaged: {why}. Delete this file; its rows are then computed again")


def encode(keys: Keys, values: Sequence[NDArray[np.float32]], fingerprint: str) -> bytes:
    """The bytes of a shard.

    Args:
        keys: of the entries, (entries,).
        values: log-probs of each entry, nats.
        fingerprint: of the model that computed them; stored for information only.
    """
    little = [value.astype("<f4", copy=False) for value in values]
    columns: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer(keys.astype(KEY_TYPE).tobytes(), dtype=np.uint8).reshape(-1, KEY_BYTES),
        "lengths": np.array([len(value) for value in little], dtype=np.int32),
        "checksums": np.array([zlib.crc32(value.tobytes()) for value in little], dtype=np.uint32),
    }
    metadata = {"format": FORMAT, "fingerprint": fingerprint, "columns": _digest(columns)}
    return save({**columns, "log_probs": np.concatenate(little)}, metadata)


def _digest(columns: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in _COLUMNS:
        digest.update(columns[name].tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file, sync it, rename it and sync the folder, so that the file is complete or absent."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True)
class Entries:
    """Positions of some entries in shards; all columns are (entries,)."""

    keys: Keys
    shard: NDArray[np.int32]
    start: NDArray[np.int64]  #: in bytes from the beginning of the shard's file
    length: NDArray[np.int32]  #: log-probs
    checksum: NDArray[np.uint32]

    def take(self, at: NDArray[np.int64]) -> Entries:
        """The entries at some positions."""
        return Entries(**{f.name: getattr(self, f.name)[at] for f in fields(self)})


def merge(parts: Sequence[Entries]) -> Entries:
    """All entries of all parts, sorted by key. Of entries with the same key the first is kept."""
    together = Entries(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Entries)})
    return together.take(np.unique(together.keys, return_index=True)[1])


class Index:
    """All entries of a cache, in a few sorted runs, so that a new shard costs no sorting of the old ones."""

    RUNS = 32  #: merged into one when there are more

    def __init__(self) -> None:
        self._runs: list[Entries] = []

    def __len__(self) -> int:
        """Number of entries; one that several processes computed at the same time counts once after the next merge."""
        return sum(len(run.keys) for run in self._runs)

    def add(self, parts: Sequence[Entries]) -> None:
        """Add the entries of new shards."""
        self._runs += [part for part in parts if len(part.keys)]
        if len(self._runs) > self.RUNS:
            self._runs = [merge(self._runs)]

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return for each key whether it is stored, (keys,)."""
        stored = np.zeros(len(keys), dtype=np.bool_)
        for run in self._runs:
            stored |= run.keys[_position(run, keys)] == keys
        return stored

    def find(self, keys: Keys) -> Entries:
        """The entry of each key; every key must be there."""
        matches = []
        for run in self._runs:
            at = _position(run, keys)
            matches.append(run.take(at[run.keys[at] == keys]))
        entries = merge(matches)
        return entries.take(_position(entries, keys))


def _position(run: Entries, keys: Keys) -> NDArray[np.int64]:
    """Position of each key in a sorted run, if it is there."""
    return np.minimum(np.searchsorted(run.keys, keys), len(run.keys) - 1)


def read_index(path: Path, shard: int) -> Entries:
    """Read a shard's index; check that the file is complete and that the index matches its digest.

    Args:
        path: the shard.
        shard: the number by which the index refers to it.

    Raises:
        ReferenceCacheError: the shard is damaged, or of another format.
    """
    with path.open("rb") as file:
        try:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            metadata = header.pop("__metadata__")
            offsets = {name: header[name]["data_offsets"] for name in (*_COLUMNS, "log_probs")}
            base, end = 8 + size, max(stop for _, stop in offsets.values())
        except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise damaged(path, f"its header cannot be read ({type(error).__name__})") from error
        if metadata.get("format") != FORMAT:
            raise damaged(path, f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        if path.stat().st_size != base + end:
            raise damaged(path, f"it has {path.stat().st_size} bytes instead of {base + end}")
        raw = {}
        for name in _COLUMNS:
            file.seek(base + offsets[name][0])
            raw[name] = file.read(offsets[name][1] - offsets[name][0])
    columns = {
        "keys": np.frombuffer(raw["keys"], KEY_TYPE),
        "lengths": np.frombuffer(raw["lengths"], "<i4"),
        "checksums": np.frombuffer(raw["checksums"], "<u4"),
    }
    if _digest(columns) != metadata.get("columns"):
        raise damaged(path, "its index does not match its checksum")
    ends = np.cumsum(columns["lengths"], dtype=np.int64)
    start = base + offsets["log_probs"][0] + 4 * (ends - columns["lengths"])
    order = np.argsort(columns["keys"], kind="stable")
    return Entries(
        keys=columns["keys"][order],
        shard=np.full(len(order), shard, dtype=np.int32),
        start=start[order],
        length=columns["lengths"][order],
        checksum=columns["checksums"][order],
    )
