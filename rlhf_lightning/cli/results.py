"""result.json: what a job left behind, in plain containers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rlhf_lightning.files import write_atomically

FILE = "result.json"


@dataclass
class Result:
    """The outcome of one job."""

    status: Literal["done", "failed", "stopped"]
    optimized_metric: str | None = None
    value: float | None = None  #: of the optimised metric
    #: The last of everything that was logged; null: not finite, or the last validation had none.
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0  #: optimiser steps taken
    seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0
    overrides: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    #: Of ``reference=cached``: rows computed and found, seconds taken and about saved.
    reference: dict[str, float] = field(default_factory=dict)
    saved: int | None = None  #: of a run that did not finish: steps behind the checkpoint that it resumes from

    def write(self, folder: Path) -> None:
        """Write ``result.json``, whole or not at all; what is not finite becomes null."""
        text = json.dumps(_finite(asdict(self)), indent=2) + "\n"
        write_atomically(folder / FILE, lambda temporary: temporary.write_text(text))

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        """The result in a folder, None when there is none (or none that can be read)."""
        try:
            values = json.loads((folder / FILE).read_text())
            return cls(**{name: values[name] for name in (f.name for f in fields(cls)) if name in values})
        except (OSError, ValueError, TypeError, AttributeError):
            return None


def short(path: str | Path) -> str:
    """A path as it is typed here: relative below the working directory, whole elsewhere."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def duration(seconds: float) -> str:
    """``12.3 s``, ``3:21 min`` or ``2:05:10 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
