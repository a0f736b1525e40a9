"""Freed tensors leave the process."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from rlhf_lightning.cli.heap import release

#: MiB that are resident before and after a release, above those before two hundred blocks were made and all but the
#: last of them freed; a large one has raised glibc's bound, so that they lie on the heap.
KEPT = """
from rlhf_lightning.cli.heap import release

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

large = b"x" * (30 << 20)
del large
before = resident()
blocks = [b"x" * (2 << 20) for _ in range(200)]
last = blocks.pop()
del blocks
kept = resident() - before
release()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's heap")
def test_freed_blocks_are_given_back():
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    kept, after = map(int, done.stdout.split())
    assert kept > 300
    assert after < 20


def test_another_c_library_only_collects(monkeypatch: pytest.MonkeyPatch):
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    deleted: list[bool] = []
    Cycle.__del__ = lambda self: deleted.append(True)  # type: ignore[attr-defined]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    Cycle()
    release()
    assert deleted == [True]
