"""Settings of every test process: one thread, no network, quiet progress bars; and what a test may not leave behind."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

# Set before anything imports torch or the hub's client; children of the tests inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("RLHF_CONF", None)
# Configurations are trees of thousands of objects that refer to each other; looking for garbage after every 700 of them
# costs a tenth of the tests that compose one.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True)
def _first_of_one_process() -> Iterator[None]:
    """Refuse a test that leaves Lightning a rank: from then on its loggers and files are another process's business."""
    yield
    module = sys.modules.get("lightning_utilities.core.rank_zero")
    rank = getattr(module.rank_zero_only, "rank", 0) if module else 0
    if module and rank:
        module.rank_zero_only.rank = 0
    left = {name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID") if os.environ.pop(name, None)}
    assert (rank, left) == (0, set()), "the test leaves this process the rank of another"
