"""The claims of the board, a file a family: what each paper claims, and the jobs in the tiny world that would show it.

A paper is named as the first line of its yaml names it; a test holds the two lists equal. Claims are our one-line
readings; where the tiny world has only a part of one, the checks say which.
"""

from __future__ import annotations

import importlib
from functools import cache

from rlhf_lightning.claims.claim import Claim

#: Files of this package in the order of the board.
FILES = ("pairs", "robust", "length", "labels", "lists", "rewards", "online", "rounds", "other", "untrained")


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim."""
    return tuple(claim for name in FILES for claim in importlib.import_module(f"{__name__}.{name}").CLAIMS)
