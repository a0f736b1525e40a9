"""The process that runs a python grader; started as a script by :mod:`~rlhf_lightning.rewards.graders.sandbox`.

It imports nothing but the standard library. One process lives for many calls; each call runs in a child that is forked
for it, so that nothing one call did is seen by the next, and that a limit which ends a call ends nothing else.

What is taken away, from the outside in:

1. the parent starts it isolated (``python -I -S``), with an empty environment, in an empty folder, in its own session;
2. here, once: no new privileges; a user and a network namespace of its own; Landlock: only the standard library can be
   read and nothing be written (Linux 5.13 on);
3. in the child of a call: standard input, output and error are the null device; limits of CPU time, memory, file size,
   open files and processes; a seccomp filter that lets through what a computation needs. There is no fork, no thread,
   no exec, no socket, no signal to others, no write to a file.

A layer that the platform does not have is left out and missing from the list that the parent is told; the limits of
POSIX hold everywhere.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from types import CodeType
from typing import Any

#: Bytes that are read of a call's answer; a longer one is no answer.
REPLY_BYTES = 4096
#: Modules that are there before the call's limits are; others are loaded by the call itself.
PRELOADED = (
    *("ast", "collections", "datetime", "decimal", "difflib", "fractions", "itertools", "json", "math", "random"),
    *("re", "statistics", "string", "textwrap", "unicodedata"),
)

_EPERM = 1
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: System calls that a computation makes: number on x86_64, number on aarch64 (-1: there is none). From the kernel's
#: own tables, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_SYSCALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, -1),
    "fstat": (5, 80),
    "lstat": (6, -1),
    "poll": (7, -1),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "access": (21, -1),
    "select": (23, -1),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, -1),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, -1),
    "futex": (202, 98),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
#: The same for those that open files, with the position of their flags.
_OPENS = {"open": (2, -1, 1), "openat": (257, 56, 2)}
#: Flags that an opening may not have: write, read and write, create, truncate, append, temporary file.
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000


def filter_program(machine: str) -> bytes:
    """The seccomp filter of an architecture as the kernel takes it, an array of ``struct sock_filter``."""

    def statement(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | _EPERM, 0x80000000
    column = list(_AUDIT_ARCH).index(machine)
    program = [statement(load, 4), statement(equal, _AUDIT_ARCH[machine], 1, 0), statement(give, kill)]
    program.append(statement(load, 0))
    for number in (numbers[column] for numbers in _SYSCALLS.values()):
        if number >= 0:
            program += [statement(equal, number, 0, 1), statement(give, allow)]
    for entry in _OPENS.values():
        if entry[column] >= 0:
            program += [statement(equal, entry[column], 0, 4), statement(load, 16 + 8 * entry[2])]
            program += [statement(any_bit, _WRITING, 0, 1), statement(give, refuse), statement(give, allow)]
    return b"".join([*program, statement(give, refuse)])


class Confinement:
    """The layers beyond POSIX, each of which is used where the kernel has it.

    Args:
        readable: folders that can be read.
    """

    def __init__(self, readable: list[str]) -> None:
        self.layers: list[str] = []
        self.null = os.open(os.devnull, os.O_RDWR)  # now, since nothing can be opened for writing later
        self._filter: bytes | None = None
        if sys.platform != "linux":
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: ends with whoever started it
        if self._libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS, which the others need
            return
        if self._libc.unshare(0x10000000 | 0x40000000) == 0:  # CLONE_NEWUSER | CLONE_NEWNET
            self.layers.append("namespaces")
        if self._landlock(readable):
            self.layers.append("landlock")
        if platform.machine() in _AUDIT_ARCH and sys.byteorder == "little":
            self._filter = filter_program(platform.machine())
            if self._computes():
                self.layers.append("seccomp")
            else:
                self._filter = None

    def _landlock(self, readable: list[str]) -> bool:
        create, add, restrict = 444, 445, 446
        version = self._libc.syscall(create, None, 0, 1)
        if version < 1:
            return False
        bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
        handled = struct.pack("QQQ", (1 << bits) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        rules = self._libc.syscall(create, handled[:size], size, 0)
        if rules < 0:
            return False
        for folder in readable:
            if os.path.isdir(folder):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                self._libc.syscall(add, rules, 1, struct.pack("=Qi", 0b1100, descriptor), 0)  # read files, list folders
                os.close(descriptor)
        done = self._libc.syscall(restrict, rules, 0) == 0
        os.close(rules)
        return bool(done)

    def _computes(self) -> bool:
        """Check whether a process behind the filter can be had here and do what a call does; not in every container."""
        pid = os.fork()
        if pid == 0:
            try:
                self.lock()
                json.loads(json.dumps({"score": math.fsum([0.5] * 1000)}))
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitpid(pid, 0)[1] == 0

    def lock(self) -> None:
        """Put the filter of system calls on this process, which cannot take it off again.

        Raises:
            OSError: the kernel does not take it.
        """
        if self._filter is None:
            return
        held = ctypes.create_string_buffer(self._filter, len(self._filter))
        program = struct.pack("HxxxxxxP", len(self._filter) // 8, ctypes.addressof(held))
        if self._libc.prctl(22, 2, program, 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
            raise OSError(ctypes.get_errno(), "the seccomp filter was refused")


def limit(cpu_seconds: int, memory: int) -> None:
    """Set this process's limits for good."""
    limits = {"CPU": cpu_seconds, "AS": memory, "DATA": memory, "FSIZE": 0, "NOFILE": 16, "NPROC": 0, "CORE": 0}
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            try:
                resource.setrlimit(kind, (value, value))
            except (ValueError, OSError):  # not every platform lets every limit be set
                continue


def grade(code: CodeType, request: dict[str, Any]) -> dict[str, Any]:
    """Run a grader on one response: ``{"score": number}`` or ``{"error": text}``."""
    try:
        namespace: dict[str, Any] = {"__name__": "grader"}
        exec(code, namespace)  # this is what the process is for; see the module's docstring
        value = namespace["grade"](request["sample"], request["item"])
        if not isinstance(value, (int, float)):
            return {"error": f"grade() returned {type(value).__name__}, not a number"}
        score = float(value)
        return {"score": score} if math.isfinite(score) else {"error": f"grade() returned {score}"}
    except BaseException as error:
        return {"error": described(error)}


def described(error: BaseException) -> str:
    """Type and text of an error whose text may itself be code of the grader's."""
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__


def child(code: CodeType, request: dict[str, Any], out: int, limits: dict[str, Any], confinement: Confinement) -> None:
    """One call, in its own process; never returns."""
    status = 1
    try:
        os.setsid()
        for descriptor in (0, 1, 2):
            os.dup2(confinement.null, descriptor)
        out = os.dup2(out, 3)
        os.closerange(4, 256)
        limit(int(limits["cpu_seconds"]), int(limits["memory"]))
        confinement.lock()
        os.write(out, json.dumps(grade(code, request)).encode()[: REPLY_BYTES + 1])
        status = 0
    finally:
        os._exit(status)


def answer_of(pid: int, out: int, seconds: float) -> dict[str, Any]:
    """Read the result of a call, or the reason for its absence; the call has ended by then."""
    deadline, parts, taken = time.monotonic() + seconds, [], 0
    while taken <= REPLY_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([out], [], [], left)[0]:
            end(pid)
            return {"error": f"timeout: no score after {seconds:g} s", "timeout": True}
        part = os.read(out, REPLY_BYTES)
        if not part:
            break
        parts.append(part)
        taken += len(part)
    status = end(pid, patience=0.5)
    if parts:
        return understood(b"".join(parts), status)
    if status is None:
        return {"error": "the call closed its output without a score and continued to run"}
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return {"error": "timeout: the CPU time is used up", "timeout": True}
    return understood(b"", status)


def understood(written: bytes, status: int | None) -> dict[str, Any]:
    """A call's answer, if it is one; a grader can write there what it likes."""
    try:
        answer = json.loads(written)
        if len(written) <= REPLY_BYTES and isinstance(answer.get("error"), str):
            return {"error": answer["error"]}
        if len(written) <= REPLY_BYTES and math.isfinite(answer["score"]):
            return {"score": float(answer["score"])}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        pass
    return {"error": f"the process ended without a score (status {status})"}


def end(pid: int, patience: float = 0.0) -> int | None:
    """The status of a call that has ended by itself; None: it is ended now with whatever it may have started.

    Args:
        pid: of the call.
        patience: seconds that it has to end by itself; after its reply it needs a moment to exit.
    """
    deadline = time.monotonic() + patience
    while True:
        finished, status = os.waitpid(pid, os.WNOHANG)
        if finished:
            return status
        if time.monotonic() >= deadline:
            break
        time.sleep(0.0005)
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            continue
    os.waitpid(pid, 0)
    return None


def serve(source: str, limits: dict[str, Any], readable: list[str]) -> None:
    """Answer requests, one JSON line each, until the input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    confinement = Confinement(readable)
    code = compile(source, "grader.py", "exec")
    reply({"ready": confinement.layers})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(code, request, writing, limits, confinement)
        os.close(writing)
        answer = answer_of(pid, reading, float(limits["seconds"]))
        os.close(reading)
        reply(answer)


def reply(answer: dict[str, Any]) -> None:
    """Write one JSON line to the parent."""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read what to run from the first line of the input, then serve."""
    os.environ.clear()  # the interpreter itself sets LC_CTYPE
    setup = json.loads(sys.stdin.buffer.readline())
    serve(setup["source"], setup["limits"], setup["readable"])


if __name__ == "__main__":
    main()
