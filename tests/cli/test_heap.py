"""Freed tensors leave the process."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from rlhf_lightning.cli.heap import map_large_blocks, release

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's heap")
@pytest.mark.parametrize(("variables", "left"), [({}, (0, 20)), ({"MALLOC_MMAP_THRESHOLD_": "33554432"}, (300, 500))])
def test_large_blocks_are_given_back_as_they_are_freed(variables: dict[str, str], left: tuple[int, int]):
    code = KEPT.replace("import release", "import map_large_blocks, release\nmap_large_blocks()", 1)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    kept, _ = map(int, done.stdout.split())
    assert left[0] <= kept < left[1]


def test_a_c_library_without_the_option(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not map_large_blocks()


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
