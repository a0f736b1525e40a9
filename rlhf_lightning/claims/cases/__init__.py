"""Goals of each method in the tiny world, a file a family; ``tests/learning`` runs all of them."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from rlhf_lightning.claims.case import Case


@cache
def cases() -> tuple[Case, ...]:
    """Every case: the lists ``CASES`` of the files in this folder."""
    names = sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))
    return tuple(case for name in names for case in importlib.import_module(f"{__name__}.{name}").CASES)
