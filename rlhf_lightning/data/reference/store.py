"""Reference log-probs on disk, addressed by content: the model's fingerprint and the tokens of each row.

There is a folder per model: its name is the fingerprint of weights, adapter, precision and log-prob definition. It has
one entry per response, under the digest of (prompt ids, response ids, scored mask). Nothing else is in a key, so a run
with another learning rate, loss, seed or output folder finds every entry, and one with another model, template,
truncation or precision finds none.

Entries are in immutable shards (safetensors). A shard is written to a temporary file, synced and renamed, so it is
complete or absent even after a kill; names are digests of the contents, so writers never collide. Each entry has a
checksum, verified whenever it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.reference.shards import (
    KEY_BYTES,
    KEY_TYPE,
    Index,
    Keys,
    ReferenceCacheError,
    damaged,
    encode,
    read_index,
    write_atomically,
)
from rlhf_lightning.data.tokens.examples import Examples, Groups
from rlhf_lightning.types import PackedBatch, Ragged

__all__ = ["ReferenceCacheError", "ReferenceStore", "ReferenceWriter", "batch_keys", "response_keys"]

#: Temporary files older than this were left by a killed writer.
_STALE_SECONDS = 3600.0
#: Largest accepted mean absolute difference between stored and fresh log-probs of a response, nats a token. Another
#: composition of the batch changes them by 1e-5 on a CPU (SmolLM2-135M, float32 and bfloat16); GPU kernels that depend
#: on the batch's shape round more coarsely in bfloat16. Another model differs by tenths.
TOLERANCE = 0.05
#: Groups whose keys are computed at once.
_AT_ONCE = 8192


def response_keys(examples: Examples) -> Keys:
    """The key of every response, (groups, slots); an empty slot has one too, under which nothing is ever stored."""
    tokens, mask = examples.tokens.astype("<i4", copy=False), examples.loss_mask
    keys = []
    for cuts in examples.by_prompt.tolist():
        prompt = tokens[cuts[0] : cuts[1]].tobytes()
        for start, end in pairwise(cuts[1:]):
            keys.append(_key(prompt, tokens[start:end].tobytes(), mask[start:end].tobytes()))
    return np.array(keys, dtype=KEY_TYPE).reshape(-1, examples.slots)


def batch_keys(batch: PackedBatch) -> Keys:
    """The key of every response of a batch, (responses,)."""
    ids = batch.ids.cpu().numpy().astype("<i4")
    mask = np.zeros(len(ids), dtype=np.bool_)
    mask[batch.target.cpu().numpy()] = True
    prompts = [ids[start:end].tobytes() for start, end in batch.prompt_span.tolist()]
    keys = [
        _key(prompts[parent], ids[start:end].tobytes(), mask[start:end].tobytes())
        for parent, (start, end) in zip(batch.parent.tolist(), batch.response_span.tolist(), strict=True)
    ]
    return np.array(keys, dtype=KEY_TYPE)


def _key(prompt: bytes, response: bytes, mask: bytes) -> bytes:
    # The prompt's length keeps a token from moving across the boundary unnoticed.
    digest = hashlib.blake2b(len(prompt).to_bytes(8, "little"), digest_size=KEY_BYTES)
    digest.update(prompt)
    digest.update(response)
    digest.update(mask)
    return digest.digest()


class ReferenceStore:
    """Reference log-probs of one model, shared by every run that uses it.

    A shard's file is open only while an entry is read, so a store keeps no file handles, works in forked loader
    processes and takes about 40 bytes of memory per entry.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        """Open or create the cache of a model.

        Args:
            folder: of all caches.
            fingerprint: of the model, from ``models.fingerprint``; names a folder in ``folder``.

        Raises:
            ValueError: the fingerprint cannot be a folder's name.
            ReferenceCacheError: a shard is damaged.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", fingerprint):
            raise ValueError(f"fingerprint {fingerprint!r} must consist of letters, digits, '.', '_' and '-'")
        self.fingerprint = fingerprint
        self.path = Path(folder).expanduser() / fingerprint
        self.path.mkdir(parents=True, exist_ok=True)
        self._shards: list[Path] = []
        self._index = Index()
        self._remove_stale()
        self.refresh()

    def __len__(self) -> int:
        """Responses stored, as of the last :meth:`refresh`."""
        return len(self._index)

    def refresh(self) -> None:
        """Look for shards that other processes have added."""
        added = sorted(set(self.path.glob("*.safetensors")) - set(self._shards))
        if added:
            parts = [read_index(path, len(self._shards) + number) for number, path in enumerate(added)]
            self._shards += added
            self._index.add(parts)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return for each key whether it is stored, in the shape of ``keys``."""
        return self._index.contains(keys.ravel()).reshape(keys.shape)

    def holds(self, examples: Groups) -> NDArray[np.bool_]:
        """Return for each group whether all its responses are stored, (groups,); an empty slot needs no entry."""
        parts = [np.zeros(0, dtype=np.bool_)]
        for start in range(0, len(examples), _AT_ONCE):
            part = examples.select(np.arange(start, min(start + _AT_ONCE, len(examples))))
            parts.append((self.contains(response_keys(part)) | (part.slot_tokens == 0)).all(axis=1))
        return np.concatenate(parts)

    def missing(self, examples: Groups) -> NDArray[np.int64]:
        """The groups with a response that is not stored, after a :meth:`refresh`."""
        self.refresh()
        return np.flatnonzero(~self.holds(examples))

    def get(self, keys: Keys) -> list[NDArray[np.float32]]:
        """The log-probs of some responses, one number (nats) for each scored token.

        Raises:
            ReferenceCacheError: a key is not stored, or its entry is damaged.
        """
        if not len(keys):
            return []
        absent = int((~self.contains(keys)).sum())
        if absent:
            raise ReferenceCacheError(f"{absent} of {len(keys)} responses are not in {self.path}")
        entries = self._index.find(keys)
        values: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(keys)
        for shard in np.unique(entries.shard).tolist():
            path = self._shards[shard]
            with path.open("rb", buffering=0) as file:
                for number in np.flatnonzero(entries.shard == shard).tolist():
                    size = 4 * int(entries.length[number])
                    data = os.pread(file.fileno(), size, int(entries.start[number]))
                    if zlib.crc32(data) != entries.checksum[number]:
                        raise damaged(path, "an entry does not match its checksum")
                    values[number] = np.frombuffer(data, dtype="<f4")
        return values

    def log_probs(self, examples: Examples) -> NDArray[np.float32]:
        """The log-probs of all scored tokens of some groups, in packing order.

        Raises:
            ReferenceCacheError: a row is not stored; the message names the first one.
        """
        keys, filled = response_keys(examples), examples.slot_tokens > 0
        stored = (self.contains(keys) | ~filled).all(axis=1)
        if not stored.all():
            self.refresh()  # another process may have added it since
            stored = (self.contains(keys) | ~filled).all(axis=1)
        if not stored.all():
            row = examples.row(int(np.flatnonzero(~stored)[0]))
            raise ReferenceCacheError(
                f"{row} has no reference log-probs in {self.path}: fill the cache with the same data options first "
                "(reference=cached does so before training)"
            )
        return np.concatenate(self.get(keys[filled]))

    def write(self, keys: Keys, values: Sequence[NDArray[np.float32]]) -> None:
        """Add a shard. When this returns, the shard is on disk; when it raises, nothing has changed."""
        content = encode(keys, values, self.fingerprint)
        write_atomically(self.path / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.safetensors", content)
        self.refresh()

    def compare(
        self, keys: Keys, values: Sequence[NDArray[np.float32]], names: Sequence[str], tolerance: float = TOLERANCE
    ) -> float:
        """Compare stored entries with log-probs that the model has just computed.

        Args:
            keys: of stored responses, (responses,).
            values: the model's log-probs of each, nats.
            names: "file:row" of each, for the error.
            tolerance: largest accepted mean absolute difference of a response's tokens, nats.

        Returns:
            The largest difference.

        Raises:
            ReferenceCacheError: a response differs by more than the tolerance.
        """
        worst = 0.0
        for name, stored, fresh in zip(names, self.get(keys), values, strict=True):
            difference = float(np.abs(fresh - stored).mean())
            if not difference <= tolerance:
                raise ReferenceCacheError(
                    f"{name}: the stored reference log-probs differ from the model's by {difference:.4f} nats a token "
                    f"(tolerance {tolerance}): {self.path} was written by another model or another version. Delete "
                    "that folder; it is computed again"
                )
            worst = max(worst, difference)
        return worst

    def verify(
        self,
        examples: Examples,
        scorer: Callable[[PackedBatch], Ragged],
        *,
        rows: int = 8,
        tolerance: float = TOLERANCE,
        seed: int = 0,
    ) -> float:
        """Score a few random stored rows again and compare.

        Args:
            examples: rows to choose from; those not stored are skipped.
            scorer: the reference model, or a policy that still equals it.
            rows: number of rows to score again.
            tolerance: see :meth:`compare`.
            seed: of the choice.

        Returns:
            The largest difference.

        Raises:
            ReferenceCacheError: a row differs by more than the tolerance.
        """
        stored = np.flatnonzero(self.holds(examples))
        worst = 0.0
        for group in np.random.default_rng(seed).permutation(stored)[:rows].tolist():
            batch = pack(examples.select(np.array([group])))
            with torch.no_grad():
                keys, values = _entries(batch, scorer(batch))
            worst = max(worst, self.compare(keys, values, [examples.row(group)] * len(values), tolerance))
        return worst

    def _remove_stale(self) -> None:
        """Remove temporary files that killed writers have left."""
        for path in self.path.glob(".*.tmp"):
            with suppress(FileNotFoundError):  # another process was faster
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


class ReferenceWriter:
    """Collects the log-probs of batches and writes them in shards.

    Every process of a run has its own writer. When the run is killed, written shards stay, and less than one shard is
    lost. Leaving a ``with`` block writes the rest, also when an exception ends it.
    """

    def __init__(
        self, store: ReferenceStore, *, rows: int = 4096, seconds: float = 60.0, tolerance: float = TOLERANCE
    ) -> None:
        """Set up an empty writer.

        Args:
            store: to write to.
            rows: responses of a shard.
            seconds: write a shard when the oldest row has waited this long, full or not.
            tolerance: see :meth:`ReferenceStore.compare`.
        """
        self.store, self.rows, self.seconds, self.tolerance = store, rows, seconds, tolerance
        self._pending: dict[bytes, NDArray[np.float32]] = {}
        self._since = time.monotonic()

    def put(self, batch: PackedBatch, log_probs: Ragged | Tensor) -> None:
        """Add the reference log-probs of a batch, one number for each scored token.

        A response that is stored already is compared, not written again.

        Raises:
            ReferenceCacheError: a log-prob is not finite, or differs from the stored one; the message names the row.
        """
        keys, values = _entries(batch, log_probs)
        filled = torch.bincount(batch.sequence, minlength=len(batch.response_span)).nonzero().flatten().tolist()
        names = [batch.rows[slot // batch.slots] if batch.rows else "a row" for slot in filled]
        for name, value in zip(names, values, strict=True):
            if not np.isfinite(value).all():
                raise ReferenceCacheError(f"{name}: the reference model gives a log-prob that is not finite")
        stored = self.store.contains(keys)
        at = np.flatnonzero(stored).tolist()
        self.store.compare(keys[stored], [values[i] for i in at], [names[i] for i in at], self.tolerance)
        if not self._pending:
            self._since = time.monotonic()
        for i in np.flatnonzero(~stored).tolist():
            self._pending[bytes(keys[i]).ljust(KEY_BYTES, b"\0")] = values[i]  # numpy strips trailing zero bytes
        if len(self._pending) >= self.rows or time.monotonic() - self._since >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        if self._pending:
            self.store.write(np.array(list(self._pending), dtype=KEY_TYPE), list(self._pending.values()))
            self._pending = {}

    def __enter__(self) -> ReferenceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()


def _entries(batch: PackedBatch, log_probs: Ragged | Tensor) -> tuple[Keys, list[NDArray[np.float32]]]:
    """Key and log-probs, in float32 on the CPU, of each response of a batch that has scored tokens."""
    token = log_probs.token if isinstance(log_probs, Ragged) else log_probs
    lengths = torch.bincount(batch.sequence, minlength=len(batch.response_span)).cpu()
    values = np.split(token.detach().float().cpu().numpy(), lengths.cumsum(0).tolist()[:-1])
    filled = lengths.numpy() > 0
    return batch_keys(batch)[filled], [value for value, kept in zip(values, filled, strict=True) if kept]
