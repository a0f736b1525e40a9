"""Columns that ``data.spec.columns`` or a mixture maps, compared with the columns of the rows."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_lightning.data.rows.fields import missing_columns, missing_columns_message
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Row


class MappedColumns:
    """Mapped columns that no row has had so far: a misspelt one is an error, not a column without values."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self._open: dict[str, dict[str, str]] = {"data.spec.columns": dict(columns)} if columns else {}
        self._names: dict[str, list[str]] = {}  # columns of the first row, by option

    def look(self, row: Row) -> None:
        """Cross off the columns that a row has."""
        if row.part:
            self._look(f"data.source.columns.{row.part}", row.unmapped, row)
        if self._open.get("data.spec.columns"):
            self._look("data.spec.columns", missing_columns(self._open["data.spec.columns"], row.values), row)

    def _look(self, option: str, absent: Mapping[str, str], row: Row) -> None:
        before = self._open.get(option, absent)
        self._open[option] = {name: column for name, column in before.items() if name in absent}
        self._names.setdefault(option, list(map(str, row.values)))

    def absent(self, row: Row) -> str:
        """A message about the mapped columns that a row lacks; empty when it has all of them."""
        missing = {"data.spec.columns": missing_columns(self.columns, row.values)}
        if row.part:
            missing[f"data.source.columns.{row.part}"] = {**row.unmapped}
        return "; ".join(
            missing_columns_message(mapping, row.values, option) for option, mapping in missing.items() if mapping
        )

    def check(self, source: str) -> None:
        """Refuse a mapped column that no row has.

        Raises:
            DataError: there is one; the message lists the columns of the first row.
        """
        for option, mapping in self._open.items():
            if mapping and option in self._names:
                names = self._names[option]
                raise DataError(
                    f"{missing_columns_message(mapping, names, option)}. No row of {source} has it. The first row has: "
                    f"{', '.join(names) or 'none'}"
                )
