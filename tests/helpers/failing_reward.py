"""A reward that fails in one process of a job."""

from __future__ import annotations

import os

from tests.helpers.online import letters


def second_process(prompt: str, response: str) -> float:
    """A number, or an error where the process is the second on its machine."""
    if os.environ.get("LOCAL_RANK") == "1":
        raise KeyError("the grader has no entry for this row")
    return letters(prompt, response)
