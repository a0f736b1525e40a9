"""Tokenised data on disk, addressed by content and shared by every run that needs it.

The key is a digest of the rows, the tokenizer, the template and the spec, so a sweep over learning rates or losses
tokenises once, and nothing that changes a token can find an old entry. An entry is a folder of flat arrays that are
memory-mapped when read; it appears by one rename, so a reader sees all of it or nothing, whatever is killed when.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.rows.problems import DataReport
from rlhf_lightning.data.tokens.examples import Examples

log = logging.getLogger(__name__)

#: Part of the key; raise it when the same rows and options start to give other tokens.
TOKENISE_VERSION = 7
#: Columns of the examples; part of the key too, so that an entry always has the columns that this version reads.
COLUMNS = tuple(field.name for field in fields(Examples))
#: Files of the numbers begin so; their names, which may hold any character, stand in ``columns.json``.
_NUMBER = "numbers-"
#: Processes that want the same entry wait this long, in seconds, for the one that makes it.
_PATIENCE = 3600.0

Made = tuple[Examples, DataReport]


def default_folder() -> Path:
    """``$RLHF_CACHE`` or ``~/.cache/rlhf-lightning``."""
    return Path(os.environ.get("RLHF_CACHE") or Path.home() / ".cache" / "rlhf-lightning")


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of vocabulary, merges, normalisation, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    # What an earlier call asked for, not what the tokenizer is.
    state = {name: value for name, value in state.items() if name not in ("padding", "truncation")}
    parts = [state, type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def cached(folder: Path, key: str, make: Callable[[], Made]) -> Made:
    """The entry of a key, made now if it does not exist.

    Of several processes that need the same entry, one makes it and the others wait. A cache that cannot be written
    does not stop the run: the failure is logged and the data stays in memory.
    """
    entry = folder / "tokenised" / key
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock", timeout=_PATIENCE):
            stored = _load(entry)
            if stored is not None:
                log.info("read tokenised data from %s", entry)
                return stored
            made = make()
            if len(made[0]):  # a data set without a usable row is not stored
                _save(entry, *made)
                return _load(entry) or made
            return made
    except (OSError, NotImplementedError) as error:
        log.warning("the cache of tokenised data in %s cannot be used (%s); see data.spec.cache_dir", folder, error)
    return make()


def _load(entry: Path) -> Made | None:
    """An entry with memory-mapped arrays; None when there is none or it is damaged."""
    if not entry.is_dir():
        return None
    try:
        report = DataReport.from_dict(json.loads((entry / "report.json").read_text(encoding="utf-8")))
        layout = json.loads((entry / "columns.json").read_text(encoding="utf-8"))
        arrays = {file.stem: np.load(file, mmap_mode="r") for file in entry.glob("*.npy")}
        numbers = {name: arrays.pop(f"{_NUMBER}{at}") for at, name in enumerate(layout["numbers"])}
        with pa.memory_map(str(entry / "rows.arrow")) as rows:
            table = pa.ipc.open_file(rows).read_all()
            texts = {name: table.column(name).combine_chunks() for name in table.column_names}
        columns = {**dict.fromkeys(COLUMNS), **arrays, "numbers": numbers, "prompts": layout["prompts"]}
        examples = Examples(**{**columns, **texts})
        if len(examples) != report.groups:
            raise ValueError(f"{len(examples)} examples, {report.groups} reported")
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        log.warning("the tokenised data in %s is damaged (%s), so it is made again", entry, error)
        return None
    return examples, report


def _save(entry: Path, examples: Examples, report: DataReport) -> None:
    """Write an entry to a temporary folder, then rename it. The caller holds the entry's lock."""
    for abandoned in entry.parent.glob(f"{entry.name}.*.tmp"):
        shutil.rmtree(abandoned, ignore_errors=True)
    shutil.rmtree(entry, ignore_errors=True)  # damaged, or it would have been read
    unfinished = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", suffix=".tmp", dir=entry.parent))
    try:
        for name in COLUMNS:
            column = getattr(examples, name)
            if isinstance(column, np.ndarray):
                np.save(unfinished / f"{name}.npy", column)
        for at, values in enumerate(examples.numbers.values()):
            np.save(unfinished / f"{_NUMBER}{at}.npy", values)
        layout = {"prompts": examples.prompts, "numbers": list(examples.numbers)}
        (unfinished / "columns.json").write_text(json.dumps(layout), encoding="utf-8")
        texts = {"names": examples.names, "columns": examples.columns}
        table = pa.table({name: values for name, values in texts.items() if values is not None})
        with pa.OSFile(str(unfinished / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        (unfinished / "report.json").write_text(json.dumps(report.to_dict()), encoding="utf-8")
        for file in unfinished.iterdir():
            _flush(file)
        unfinished.rename(entry)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        log.warning("tokenised data could not be stored in %s (%s); see data.spec.cache_dir", entry.parent, error)


def _flush(file: Path) -> None:
    """Sync a file to disk, so that the rename never comes before its content."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
