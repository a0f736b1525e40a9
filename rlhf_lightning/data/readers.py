"""Read rows of one local file: JSONL, JSON, CSV, TSV, Parquet.

Every reader yields ``(number, values, error)``: a row number from 1, the row's fields, and why the row could not be
read (then the fields are empty). Reading goes on after a broken row wherever the file format allows it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from rlhf_lightning.data.checks import DataError

Reading = tuple[int, Mapping[str, Any], str | None]
#: Part of cached data's key; raise it when a reader starts to give other rows for the same bytes.
READER_VERSION = 1
#: Longest field of a CSV file, in characters; the csv module's own limit of 128 KiB is below real dialogues.
_CSV_FIELD = 1 << 26
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_rows(file: Path, field: str | None = None) -> Iterator[Reading]:
    """Rows of a file, by its suffix; ``field`` names the rows' place in a JSON file that is one object."""
    suffix = suffix_of(file)
    if suffix is None:
        raise DataError(f"{file}: no reader for this suffix; known: {', '.join(SUFFIXES)}")
    return _READERS[suffix](file, field)


def suffix_of(file: Path) -> str | None:
    """The suffix that chooses the reader, without ``.gz``; None when there is no reader."""
    name = file.name.lower()
    plain = name.removesuffix(".gz")
    suffix = Path(plain).suffix
    if suffix not in _READERS or (suffix == ".parquet" and plain != name):
        return None
    return suffix


def _open(file: Path) -> BinaryIO:
    if file.name.lower().endswith(".gz"):
        return cast("BinaryIO", gzip.open(file, "rb"))
    return file.open("rb")


def _jsonl(file: Path, field: str | None) -> Iterator[Reading]:
    with _open(file) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                yield _object(number, json.loads(line.removeprefix(_BYTE_ORDER_MARK).strip()))
            except json.JSONDecodeError as error:
                yield number, {}, f"not valid JSON at column {error.colno}: {error.msg}"
            except UnicodeDecodeError as error:
                yield number, {}, f"not valid UTF-8: {error}"


def _object(number: int, value: Any) -> Reading:
    if isinstance(value, dict):
        return number, value, None
    return number, {}, f"expected a JSON object, found {type(value).__name__}"


def _json(file: Path, field: str | None) -> Iterator[Reading]:
    with _open(file) as handle:
        content = handle.read().removeprefix(_BYTE_ORDER_MARK)
    try:
        value = json.loads(content)
    except UnicodeDecodeError as error:
        yield content.count(b"\n", 0, error.start) + 1, {}, f"the file is not valid JSON: {error}"
        return
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and content.lstrip().startswith(b"{"):  # one object a line
            yield from _jsonl(file, field)
        else:
            where = f"line {error.lineno}, column {error.colno}"
            yield error.lineno, {}, f"the file is not valid JSON, nothing of it was read ({where}): {error.msg}"
        return
    for number, element in enumerate(_elements(file, value, field), start=1):
        yield _object(number, element)


def _elements(file: Path, value: Any, field: str | None) -> list[Any]:
    """The rows inside a parsed JSON file: the list itself, a field of the object, or the object as the only row."""
    if isinstance(value, list):
        return value
    lists = [name for name, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
    if field is None and len(lists) == 1 and len(value) == 1:
        field = lists[0]
    if field is not None:
        if field not in lists:
            raise DataError(
                f"{file}: data.source.field={field!r} is no list of rows; lists: {', '.join(lists) or 'none'}"
            )
        return cast("list[Any]", value[field])
    return [value]


def _csv(file: Path, field: str | None, delimiter: str = ",") -> Iterator[Reading]:
    csv.field_size_limit(_CSV_FIELD)
    # surrogateescape: a row with a broken byte is reported by number instead of ending the file
    with io.TextIOWrapper(_open(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        header = next(reader, None)
        number = 0
        while header is not None:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, {}, f"not valid CSV (line {reader.line_num}): {error}"
                continue
            if cells:
                yield _record(number, header, cells)


def _record(number: int, header: list[str], cells: list[str]) -> Reading:
    if len(cells) != len(header):
        return number, {}, f"{len(cells)} cells under a header of {len(header)}"
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        return number, {}, "not valid UTF-8"
    return number, dict(zip(header, cells, strict=True)), None


def _tsv(file: Path, field: str | None) -> Iterator[Reading]:
    return _csv(file, field, delimiter="\t")


def _parquet(file: Path, field: str | None) -> Iterator[Reading]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        yield 1, {}, f"the file is not valid Parquet, nothing of it was read: {error}"
        return
    number = 0
    with table:
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield number, values, None


_READERS: dict[str, Callable[[Path, str | None], Iterator[Reading]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
SUFFIXES = (*_READERS, ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz")
