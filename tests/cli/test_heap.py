"""Freed tensors leave the process."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from rlhf_lightning.cli.heap import return_freed_memory

#: MiB that stay when all but the last of two hundred blocks are freed, after a large one has raised glibc's bound.
KEPT = """
import sys
from rlhf_lightning.cli.heap import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

if sys.argv[1] == "bounded":
    assert return_freed_memory()
large = b"x" * (30 << 20)
del large
before = resident()
blocks = [b"x" * (2 << 20) for _ in range(200)]
last = blocks.pop()
del blocks
print(resident() - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's heap")


@glibc
def test_freed_blocks_are_returned():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", KEPT, how], env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("bounded", "as it is")
    }
    assert kept["bounded"] < 20
    assert kept["as it is"] > 300


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "123456")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert return_freed_memory() is False


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert return_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert return_freed_memory() is False
