"""The digest by which a resumed run recognises its data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlhf_lightning.data.tokens.examples import Examples
from rlhf_lightning.types import Example

ROWS = [
    Example([1, 2], [[3, 4], [5]], row="a.jsonl:1", margin=1.0, columns='{"answer": 4}'),
    Example([1], [[3], [5, 6]], row="a.jsonl:2", margin=0.5, columns='{"answer": 5}'),
]


def content(*rows: Example) -> str:
    return Examples.build(rows).content()


def test_whatever_is_trained_on_counts_and_where_it_lies_does_not():
    """Lengths alone, which a loader compares, do not see a row that was edited."""
    first, second = ROWS
    moved = [replace(row, row=row.row.replace("a.jsonl", "b.jsonl")) for row in ROWS]
    assert content(*moved) == content(*ROWS)
    changed = [
        replace(first, prompt=[1, 9]),
        replace(first, responses=[[3, 9], [5]]),
        replace(first, margin=2.0),
        replace(first, columns='{"answer": 9}'),
    ]
    others = [content(row, second) for row in changed] + [content(second, first), content(first)]
    assert len({content(*ROWS), *others}) == 1 + len(others)


def test_a_part_of_the_data_has_a_content_of_its_own():
    whole = Examples.build(ROWS)
    first, second = (whole.select(np.array([number])) for number in (0, 1))
    assert len({whole.content(), first.content(), second.content()}) == 3
