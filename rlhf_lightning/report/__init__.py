"""Runs compared: leaderboard, reward-KL frontier, curves, implicit rewards, samples, options.

``rlhf report`` writes all of it as one page; a notebook takes the parts::

    from rlhf_lightning.report import Runs, write_report
    runs = Runs.read("multirun/2026-01-31_12-00-00")
    runs.leaderboard()
    runs.frontier()
    write_report(runs, "report")

Only plain files of the runs are read: nothing here imports torch, Lightning or Hydra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lightning.report.page import Report as Report
    from rlhf_lightning.report.page import write_report as write_report
    from rlhf_lightning.report.reading import ReportError as ReportError
    from rlhf_lightning.report.reading import Run as Run
    from rlhf_lightning.report.runs import Runs as Runs

_HOME = {"Report": "page", "ReportError": "reading", "Run": "reading", "Runs": "runs", "write_report": "page"}

__all__ = ["Report", "ReportError", "Run", "Runs", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
