"""Callback of ``plan.py``: CPU seconds and tokens of every step, and memory that training added."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class CpuClock(Callback):
    """Writes what process 0 measured.

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.steps: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock with the first step, and note what the process holds before it."""
        if not self.steps:
            self.resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
            self.since = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note a step: CPU seconds since the end of the one before, with loading and drawing."""
        now = time.process_time()
        self.steps.append({"seconds": now - self.since, "tokens": len(batch.ids), "groups": len(batch)})
        self.since = now

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            facts = {"steps": self.steps, "added": peak - self.resident, "processes": trainer.world_size}
            self.path.write_text(json.dumps(facts))
