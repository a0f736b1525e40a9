"""Progress of work that comes in portions."""

from __future__ import annotations

import io

from rich.console import Console

from rlhf_lightning.cli.counted import counted


def lines(total: int, portions: list[int]) -> list[str]:
    file = io.StringIO()
    with counted("responses", total, console=Console(file=file)) as progress:
        for portion in portions:
            progress(portion)
    return file.getvalue().splitlines()


def test_a_line_each_tenth_and_the_last():
    assert lines(40, [1] * 40) == [f"responses {done}/40" for done in range(4, 41, 4)]
    assert lines(10, [8, 2]) == ["responses 8/10", "responses 10/10"]


def test_little_work_shows_nothing():
    with counted("responses", 3, shown=False) as progress:
        assert progress is None
