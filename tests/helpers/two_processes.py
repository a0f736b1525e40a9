"""A module run as a job of two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def failure(module: str, *arguments: str) -> str:
    """Run ``python -m module`` in two processes on this machine; what it printed where it failed, else nothing."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", module, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-6000:]}"
