"""A vLLM server of our own on this machine: started, waited for and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rlhf_lightning.rollout.endpoint import Endpoint, ServerError
from rlhf_lightning.rollout.vllm_options import ENVIRONMENT

#: What a server must be started with so that its weights can be renewed. The routes that do it have no protection of
#: their own, which is why the server listens on this machine only.
ENVIRONMENT_OF_SERVERS: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",  # the model is a folder
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # the default leaves a core to the engine's own loop, half of two
}


_PATIENCE = 10.0  # seconds between asking a server to end and making it


def free_port(port: int | None = None) -> int:
    """A port of this machine that nothing listens on.

    Args:
        port: that it must be; None: any.

    Raises:
        ServerError: something listens on it already, which would be taken for the server that is started.
    """
    with socket.socket() as probe:
        if port is not None:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise ServerError(
                    f"rollout.server.port={port}: another server listens there; choose another one, null for a free "
                    f"one, or rollout.url=http://127.0.0.1:{port} if it is the one to use"
                )
            return port
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A running server and all that it started.

    It ends with :meth:`stop`, and otherwise when this object is collected or the interpreter exits.

    Args:
        command: its arguments after the interpreter's.
        port: that it was told to listen on.
        log_file: what it says goes there.
        environment: set beside this process's own.

    Raises:
        OSError: the interpreter cannot be started.
    """

    def __init__(self, command: Sequence[str], port: int, log_file: Path, environment: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log_file = log_file
        home = str(Path(__file__).resolve().parents[2])  # the worker extension must be importable
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {
            **ENVIRONMENT,
            **ENVIRONMENT_OF_SERVERS,
            **os.environ,
            **environment,
            "PYTHONPATH": os.pathsep.join(paths),
        }
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )
        self.stop = weakref.finalize(self, end_group, self._process)

    def wait(self, seconds: float) -> None:
        """Wait until the server answers.

        Raises:
            ServerError: it ended, or does not answer in time; the message has the end of its log.
        """
        endpoint, until = Endpoint(self.url, timeout=5, retries=0), time.monotonic() + seconds
        while True:
            if ended := self.ended():
                raise ServerError(f"{ended} while it started. {end_of_log(self.log_file)}")
            try:
                endpoint.get("/health")
                return
            except ServerError:
                if time.monotonic() > until:
                    self.stop()
                    raise ServerError(
                        f"the vLLM server did not answer within rollout.server.start_timeout={seconds:g} s. "
                        f"{end_of_log(self.log_file)}"
                    ) from None
                time.sleep(0.25)

    def ended(self, patience: float = 0.0) -> str | None:
        """Description of how the server ended, with all processes that it started. None: it runs.

        Args:
            patience: seconds to wait for its end.
        """
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        self.stop()
        return f"the vLLM server ended with code {code}{_signal(code)}"


def _signal(code: int) -> str:
    """The signal behind a negative exit code, for a message."""
    if code >= 0:
        return ""
    hint = ": is the machine out of memory?" if -code == signal.SIGKILL else ""
    return f" ({signal.strsignal(-code)}{hint})"


def end_of_log(log_file: Path, lines: int = 15) -> str:
    """The name of a server's log and its last lines, for a message."""
    if not log_file.exists():
        return f"Its log was {log_file}, and is gone"
    last = log_file.read_text(errors="replace").strip().splitlines()[-lines:]
    return f"Its log is {log_file}; it ends with:\n" + "\n".join(last)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a session, and everything that it started; nothing happens where it has ended."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, way)
        except ProcessLookupError:
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    process.poll()
