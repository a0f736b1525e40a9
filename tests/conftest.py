"""Settings of every test process: one thread, no network, quiet progress bars."""

from __future__ import annotations

import os

# Set before anything imports torch or the hub's client; children of the tests inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("RLHF_CONF", None)
