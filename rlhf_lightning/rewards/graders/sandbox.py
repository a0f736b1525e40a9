"""Python graders in a process of their own, with limits: the side of the process that is trusted."""

from __future__ import annotations

import ast
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("worker.py")
#: Seconds that the process may take beyond a call's own time before it is taken for dead, starting included.
_PATIENCE = 60.0
#: Characters of a grader's source, as in OpenAI's graders.
MAX_SOURCE = 256_000
#: Where shared libraries of the standard library's modules may lie.
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")


@dataclass(frozen=True)
class Limits:
    """Limits of one call of a python grader.

    Attributes:
        cpu_seconds: of computing, whole seconds; what decides whether a grader is too slow, since it does not depend on
            what else the machine does.
        seconds: of waiting, whatever it does.
        memory: bytes of address space, the interpreter's own (about 30 MB) included.
    """

    cpu_seconds: int = 2
    seconds: float = 10.0
    memory: int = 512 * 2**20

    def __post_init__(self) -> None:
        if self.cpu_seconds < 1 or self.seconds <= 0 or self.memory < 64 * 2**20:
            raise ValueError(
                f"limits of a python grader: cpu_seconds={self.cpu_seconds} must be at least 1, "
                f"seconds={self.seconds} positive and memory={self.memory} at least {64 * 2**20} bytes"
            )


@dataclass(frozen=True)
class Outcome:
    """Result of a call."""

    score: float | None  #: None: it failed
    error: str | None = None
    timeout: bool = False


def check_source(source: str, where: str) -> None:
    """Refuse a source that cannot be a grader, without running it.

    Args:
        source: Python text.
        where: the option that it stands under, for the message.

    Raises:
        ValueError: too long, not Python, or without ``def grade(sample, item)``.
    """
    if len(source) > MAX_SOURCE:
        raise ValueError(f"{where}: {len(source)} characters; a python grader has at most {MAX_SOURCE}")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where} is not Python: {error}") from error
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "grade"]
    if not functions:
        raise ValueError(f"{where} has no function grade at its top level: def grade(sample, item) -> float: ...")
    arguments = functions[-1].args
    given = len(arguments.posonlyargs) + len(arguments.args)
    needed = given - len(arguments.defaults)
    demanded = [
        a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    if needed > 2 or (given < 2 and arguments.vararg is None) or demanded:
        raise ValueError(f"{where}: grade must be callable as grade(sample, item)")


class Sandbox:
    """A process that runs one grader for many calls; started on the first call and again after it was lost.

    Args:
        source: Python text with ``def grade(sample, item) -> float``.
        limits: of each call.
    """

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        self.source, self.limits = source, limits or Limits()
        #: Layers beyond the limits of POSIX that the platform has; known once the process runs.
        self.layers: list[str] = []
        self.starts = 0  #: how often the process was started
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""

    def run(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> Outcome:
        """Grade one response; never raises for what the grader does.

        Args:
            sample: what ``grade`` gets first, JSON-able.
            item: what it gets second, JSON-able.

        Raises:
            TypeError: ``sample`` or ``item`` cannot be written as JSON.
        """
        line = json.dumps({"sample": sample, "item": item}).encode() + b"\n"
        try:
            answer = self._ask(line)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            return Outcome(None, f"the grader's process was lost: {error}")
        if "score" in answer:
            return Outcome(float(answer["score"]))
        return Outcome(None, str(answer.get("error")), bool(answer.get("timeout")))

    def _ask(self, line: bytes) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._send(line)
        return self._receive(self.limits.seconds + _PATIENCE)

    def _start(self) -> None:
        self.close()
        folder = tempfile.TemporaryDirectory(prefix="grader-", ignore_cleanup_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder.name,
            env={},
            start_new_session=True,
            close_fds=True,
        )
        self._process, self._pending = process, b""
        self.starts += 1
        self._finalizer = weakref.finalize(self, _stop, process, folder)
        interpreter_lib = os.path.join(
            sys.base_prefix, "lib"
        )  # also of shared libraries that come with the interpreter
        readable = [*(path for path in sys.path if _is_standard(path)), interpreter_lib, *_LIBRARIES]
        setup = {"source": self.source, "limits": asdict(self.limits), "readable": readable}
        self._send(json.dumps(setup).encode() + b"\n")
        self.layers = list(self._receive(_PATIENCE)["ready"])
        if self.starts == 1:
            log.info("python grader: limits of POSIX and %s", ", ".join(self.layers) or "nothing else")
        if self.starts == 1 and not {"seccomp", "namespaces"} & set(self.layers):
            log.warning("this platform cannot keep a python grader from the network or from files: trust its source")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EOFError("it is not running")
        return self._process

    def _send(self, line: bytes) -> None:
        stream = self._running().stdin
        assert stream is not None  # a pipe was asked for
        stream.write(line)
        stream.flush()

    def _receive(self, seconds: float) -> dict[str, Any]:
        pipe = self._running().stdout
        assert pipe is not None  # it was asked for
        stream, deadline = pipe.fileno(), time.monotonic() + seconds
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise EOFError(f"no answer for {seconds:g} s")
            part = os.read(stream, 65_536)
            if not part:
                raise EOFError("it ended")
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._finalizer()
            self._process = None


def _is_standard(path: str) -> bool:
    """Check whether an entry of ``sys.path`` is a folder of the standard library."""
    roots = [str(Path(prefix).resolve()) for prefix in (sys.base_prefix, sys.base_exec_prefix)]
    resolved = str(Path(path).resolve()) if path else ""
    return any(resolved.startswith(root + os.sep) for root in roots) and "site-packages" not in resolved


def _stop(process: subprocess.Popen[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue
    folder.cleanup()
