"""Optional numbers of responses: margins of pairs, win probabilities, and which model drew a response.

Unlike the numbers that define a row's kind, some rows of a data set may lack them. They are therefore kept apart while
examples are collected; a number that some rows lack is not used, and the report has a note about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.data.kinds import KINDS
from rlhf_lightning.data.rows.problems import DataReport
from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import Example, PreferenceBatch

_NAN = float("nan")


class OptionalNumbers:
    """Margins and numbers of examples that some rows may lack.

    Args:
        kind: of the data; only missing margins of pairs are reported.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.margins: list[float] = []
        self.rows: dict[str, list[tuple[int, Any]]] = {}  #: by name, the rows that have it and their numbers

    def without(self, example: Example) -> Example:
        """The example without them."""
        kept = {name: values for name, values in example.numbers.items() if name not in PreferenceBatch.OPTIONAL}
        return replace(example, margin=None, numbers=kept)

    def add(self, example: Example) -> None:
        """Store those of the next example."""
        for name in PreferenceBatch.OPTIONAL:
            if name in example.numbers:
                self.rows.setdefault(name, []).append((len(self.margins), example.numbers[name]))
        self.margins.append(_NAN if example.margin is None else example.margin)

    def joined(self, examples: Examples, report: DataReport) -> Examples:
        """The collected examples with them; a number that some rows lack is left out, with a note."""
        numbers = {name: table for name in self.rows if (table := self._table(name, examples, report)) is not None}
        return replace(examples, margin=self._margin(report), numbers={**examples.numbers, **numbers})

    def _table(self, name: str, examples: Examples, report: DataReport) -> NDArray[np.float32] | None:
        """A number of every response, (groups, slots)."""
        absent = len(examples) - len(self.rows[name])
        if absent and name not in PreferenceBatch.DRAWN_BY:
            report.note(f"{absent} of {len(examples)} rows have no {name}, so it is not used")
            return None
        table = np.zeros((len(examples), examples.slots), dtype=np.float32)
        for row, values in self.rows[name]:
            table[row] = values
        return table

    def _margin(self, report: DataReport) -> NDArray[np.float32] | None:
        """Margins of all examples, or None when some have none."""
        margins = np.asarray(self.margins, dtype=np.float64)
        absent = int(np.isnan(margins).sum())
        if 0 < absent < len(margins) and KINDS[self.kind].pair:
            report.note(f"{absent} of {len(margins)} rows have no margin, so margins are not used")
        return None if absent or not len(margins) else margins.astype(np.float32)


def has_input(parts: Sequence[Examples], name: str) -> bool:
    """Return whether data sets have an input of a loss; True where there are no data sets.

    A margin or a win probability (of lists: scores in [0, 1]) must be in each; the model that drew a response in one of
    them.
    """
    present = [_has(part, name) for part in parts]
    return (any(present) or not present) if name in PreferenceBatch.DRAWN_BY else all(present)


def _has(examples: Examples, name: str) -> bool:
    if name == "margin":
        return examples.margin is not None
    if name == "win_probability" and "score" in examples.numbers:
        scores = examples.numbers["score"][examples.slot_tokens > 0]
        return bool(((scores >= 0) & (scores <= 1)).all())
    return name in examples.numbers
