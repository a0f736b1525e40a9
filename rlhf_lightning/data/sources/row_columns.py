"""Columns of tokenised rows, for rewards: read again from the source, so that they are kept only where needed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from rlhf_lightning.data.kinds import PROMPTS
from rlhf_lightning.data.rows.formats import convert
from rlhf_lightning.data.rows.problems import RowError
from rlhf_lightning.data.rows.records import as_json
from rlhf_lightning.data.sources.base import Row, Source, for_kind
from rlhf_lightning.data.spec import DataSpec


def columns_of_rows(source: Source, spec: DataSpec, kind: str, wanted: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Read the columns of some rows, as data of kind ``prompt`` keeps them for every row.

    Tokenised data of other kinds has no columns, on disk or in memory. The columns are read from the source; ``prompt``
    is the one that the row's format gives.

    Args:
        source: of the tokenised data.
        spec: options that its rows are tokenised with.
        kind: of the tokenised data.
        wanted: ``file:row`` of the rows.

    Returns:
        Columns by ``file:row``; rows that the source does not have are left out.
    """
    missing, by_row = set(wanted), dict[str, Mapping[str, Any]]()
    for row in for_kind(source, kind).rows() if missing else ():
        if row.id in missing:
            missing.remove(row.id)
            by_row[row.id] = json.loads(as_json({**row.values, **_prompt(row, spec)})[0])
            if not missing:
                break
    return by_row


def _prompt(row: Row, spec: DataSpec) -> dict[str, Any]:
    """The prompt as the column ``prompt``; empty for a row that has none, such as plain text."""
    try:
        record = convert(row.values, spec, kind=PROMPTS, conversation=spec.template not in ("auto", "none"))
    except RowError:
        return {}
    return {} if record is None else {"prompt": record.prompt}
