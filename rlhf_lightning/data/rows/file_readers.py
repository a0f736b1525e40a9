"""Read rows of one local file: JSONL, JSON, CSV, TSV, Parquet.

Every reader yields ``(number, values, error)``: a row number from 1, the row's fields, and why the row could not be
read (then the fields are empty). Reading continues after a broken row wherever the file format allows it, and no error
of a file reaches the caller: where a file cannot be read beyond a point, that is the error of the row that follows the
last one read. A cell that cannot be decoded is :class:`Unreadable`, an error only where the cell is used.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from rlhf_lightning.data.rows.problems import DataError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

Reading = tuple[int, Mapping[str, Any], str | None]
#: Part of cached data's key; raise it when a reader starts to give other rows for the same bytes.
READER_VERSION = 2
#: Longest field of a CSV file, in characters; the csv module's own limit of 128 KiB is below real dialogues.
_CSV_FIELD = 1 << 26
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_BATCH = 1024
#: Base classes of what reading a damaged file raises: the system's errors (also gzip's, and Arrow's of pages), the end
#: of a cut archive, and values that cannot be decoded or represented.
_DAMAGE = (OSError, EOFError, zlib.error, csv.Error, ValueError, ArithmeticError, RecursionError)


_UNREADABLE = "the file cannot be read"


@dataclass(frozen=True)
class Unreadable:
    """A cell whose value could not be decoded, or was not read because nothing needs its column."""

    reason: str


UNREAD = Unreadable("the column was not read")


def read_rows(file: Path, field: str | None = None, columns: Collection[str] | None = None) -> Iterator[Reading]:
    """Rows of a file, by its suffix.

    Args:
        file: to read.
        field: of a JSON file that is one object, the field that holds the rows.
        columns: those that are used; where a format can leave the others undecoded, they are ``UNREAD``. None: all.

    Raises:
        DataError: no reader supports the suffix, two columns have the same name, or ``field`` is not a list of rows.
    """
    suffix = suffix_of(file)
    if suffix is None:
        raise DataError(f"{file}: no reader for this suffix; supported: {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        return until_damage(_parquet(file, columns))
    return until_damage(_READERS[suffix](file, field))


def until_damage(readings: Iterator[Reading]) -> Iterator[Reading]:
    """Yield readings up to the first damage in the file; the last one then has the error."""
    number = 0
    try:
        for reading in readings:
            number = reading[0]
            yield reading
    except DataError:
        raise
    except _DAMAGE as error:
        yield number + 1, {}, f"{_UNREADABLE} from here on, so later rows are lost: {_reason(error)}"


def _reason(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]


def _refuse_repeated(file: Path, names: Sequence[str]) -> None:
    """Raise DataError where several columns have the same name, since a row could hold only one of them."""
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        listed = ", ".join(map(repr, repeated))
        raise DataError(
            f"{file}: more than one column is named {listed}, and a row can hold only one of them. Rename or remove "
            "the others"
        )


def suffix_of(file: Path) -> str | None:
    """The suffix that chooses the reader, without ``.gz``; None when there is no reader."""
    name = file.name.lower()
    plain = name.removesuffix(".gz")
    suffix = Path(plain).suffix
    if suffix not in _PLAIN_SUFFIXES or (suffix == ".parquet" and plain != name):
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
                value = _parsed(line.removeprefix(_BYTE_ORDER_MARK).strip())
            except json.JSONDecodeError as error:
                yield number, {}, f"not valid JSON at column {error.colno}: {error.msg}"
            except UnicodeDecodeError as error:
                yield number, {}, f"not valid UTF-8: {error}"
            except (ValueError, RecursionError) as error:
                yield number, {}, f"JSON that cannot be represented: {_reason(error)}"
            else:
                yield _object(number, value)


class _RepeatedKeyError(ValueError):
    """A JSON object has a key twice."""


def _parsed(text: bytes) -> Any:
    """A JSON value; integers beyond Python's limit of digits become decimals.

    Raises:
        ValueError, RecursionError: it is not JSON, has a key twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError, _RepeatedKeyError):
        raise
    except ValueError:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_integer)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _RepeatedKeyError(f"the key {repeated!r} occurs twice in an object")
    return made


def _integer(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:  # keeps the row of an id of thousands of digits
        return Decimal(digits)


def _object(number: int, value: Any) -> Reading:
    if isinstance(value, dict):
        return number, value, None
    return number, {}, f"expected a JSON object, found {type(value).__name__}"


def _json(file: Path, field: str | None) -> Iterator[Reading]:
    with _open(file) as handle:
        content = handle.read().removeprefix(_BYTE_ORDER_MARK)
    try:
        value = _parsed(content)
    except UnicodeDecodeError as error:
        yield content.count(b"\n", 0, error.start) + 1, {}, f"the file is not valid JSON: {error}"
        return
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and content.lstrip().startswith(b"{"):  # one object a line
            yield from _jsonl(file, field)
        else:
            where = f"line {error.lineno}, column {error.colno}"
            yield error.lineno, {}, f"the file is not valid JSON, so none of it was read ({where}): {error.msg}"
        return
    except (ValueError, RecursionError) as error:
        yield 1, {}, f"{_UNREADABLE}, so none of it was read: {_reason(error)}"
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
                f"{file}: data.source.field={field!r} is not a list of rows; lists: {', '.join(lists) or 'none'}"
            )
        return cast("list[Any]", value[field])
    return [value]


def _csv(file: Path, field: str | None, delimiter: str = ",") -> Iterator[Reading]:
    csv.field_size_limit(_CSV_FIELD)
    # surrogateescape: a row with a broken byte is reported by number instead of ending the file
    with io.TextIOWrapper(_open(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        header = _header(file, reader)
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


def _header(file: Path, reader: Iterator[list[str]]) -> list[str] | None:
    """The names of the columns; None for an empty file."""
    header = next(reader, None)
    _refuse_repeated(file, header or [])
    return header


def _record(number: int, header: list[str], cells: list[str]) -> Reading:
    if len(cells) != len(header):
        return number, {}, f"{len(cells)} cells under a header of {len(header)}"
    return number, dict(zip(header, map(_cell, cells), strict=True)), None


def _cell(text: str) -> str | Unreadable:
    """A cell's text; bytes that are not UTF-8 were read as lone surrogates."""
    if text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    return Unreadable("not valid UTF-8")


def _tsv(file: Path, field: str | None) -> Iterator[Reading]:
    return _csv(file, field, delimiter="\t")


def _parquet(file: Path, used: Collection[str] | None) -> Iterator[Reading]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, *_DAMAGE) as error:
        yield 1, {}, f"the file is not valid Parquet, so none of it was read: {_reason(error)}"
        return
    with table:
        names = table.schema_arrow.names
        _refuse_repeated(file, names)
        wanted, unread = None, dict[str, Unreadable]()
        if used is not None:
            # at least one column: a batch without columns has no rows either
            wanted = [name for name in names if name in used] or names[:1]
            unread = {name: UNREAD for name in names if name not in used}
        first = 0
        for group in range(table.num_row_groups):
            yield from _row_group(table, group, wanted, unread, first)
            first += table.metadata.row_group(group).num_rows


def _row_group(
    table: pyarrow.parquet.ParquetFile,
    group: int,
    wanted: list[str] | None,
    unread: Mapping[str, Unreadable],
    first: int,
) -> Iterator[Reading]:
    """Rows of a row group of a Parquet file; those from a damaged page on are errors, and the next group is read."""
    import pyarrow

    number, last = first, first + table.metadata.row_group(group).num_rows
    try:
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH, row_groups=[group], columns=wanted):
            for values in _values(batch):
                number += 1
                yield number, {**values, **unread} if unread else values, None
        reason = "its pages hold fewer rows than its footer says"
    except (pyarrow.ArrowException, *_DAMAGE) as error:
        reason = _reason(error)
    damage = f"{_UNREADABLE} from row {number + 1} to row {last}: {reason}"
    for lost in range(number + 1, last + 1):
        yield lost, {}, damage


def _values(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch; cells that Python has no value for (dates of the year 20,000) stay Arrow's."""
    try:
        rows = batch.to_pylist()
    except (ValueError, ArithmeticError):
        columns = [[_python_value(cell) for cell in column] for column in batch.columns]
        rows = [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    yield from rows


def _python_value(cell: pyarrow.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, ArithmeticError):
        return cell


_READERS: dict[str, Callable[[Path, str | None], Iterator[Reading]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
_PLAIN_SUFFIXES = (*_READERS, ".parquet")
SUFFIXES = (*_PLAIN_SUFFIXES, ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz")
