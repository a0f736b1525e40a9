"""One training run of this project (or of TRL, in TRL's environment) over given token ids, timed step by step.

    python benchmarks/worker.py SIDE settings.json result.json       # ours, trl, ours_grpo ...: a file side_*.py

Started by ``vs_trl.py``, ``grpo_vs_trl.py``, ``generation.py`` and ``gpu.py``; all sides share the settings, the clock
and what is written. Imports of either library happen only on its side (``side_*.py``), so TRL's environment needs
nothing of this project.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

BETA, RATE, CLIP = 0.1, 1e-6, 1.0
#: Prompt, chosen, rejected; of KTO prompt, response, another row's response, [label]; of SFT prompt, response.
Row = list[list[int]]


class Clock:
    """CPU and wall seconds, and the loss, of each optimiser step: from the batch's arrival to the updated weights."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.start()

    def start(self) -> None:
        """Forget what has passed."""
        _finish()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        self._parts: dict[str, float] = {}

    def stop(self, loss: float) -> None:
        """End a step."""
        _finish()
        whole = {"cpu": time.process_time() - self._cpu, "wall": time.perf_counter() - self._wall, "loss": loss}
        self.steps.append(whole | self._parts)
        self.start()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside as a part of the step: ``<name>_cpu`` and ``<name>_wall`` seconds."""
        _finish()
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        _finish()
        for clock, seconds in (("cpu", time.process_time() - cpu), ("wall", time.perf_counter() - wall)):
            self._parts[f"{name}_{clock}"] = self._parts.get(f"{name}_{clock}", 0.0) + seconds


def _finish() -> None:
    """Wait until a GPU has done what it was told, so that its work is in the right step."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _peak_mib() -> float:
    """Peak of memory: what torch took of a GPU, or the process's largest resident set."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run one side and write what was measured."""
    side, settings_path, result_path = sys.argv[1:]
    settings = json.loads(Path(settings_path).read_text())
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    rows = json.loads(Path(settings["rows"]).read_text())
    clock = Clock()
    scores = importlib.import_module(f"side_{side}").run(settings, rows, clock)
    result = {"scores": scores, "steps": clock.steps, "peak_mib": _peak_mib()}
    Path(result_path).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
