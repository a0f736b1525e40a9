"""Targets of the Makefile that tests do not run themselves."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_files_of_tests_that_targets_name_are_there():
    named = re.findall(r"\btests/[\w/.]+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert "tests/cli/test_harness.py" in named
    assert [path for path in named if not (ROOT / path).exists()] == []
