"""Versions of what a run stood on."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf_lightning.version import __version__

PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "hydra-core")


def versions() -> dict[str, str]:
    """Python, this package and the main ones beneath it."""
    installed = {"python": platform.python_version(), "rlhf-lightning": __version__}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def source_digest() -> str:
    """Digest of this package's Python files, which tells two checkouts of one version apart."""
    root, whole = Path(__file__).resolve().parents[1], hashlib.blake2b(digest_size=8)
    for file in sorted(root.rglob("*.py")):
        whole.update(f"{file.relative_to(root).as_posix()}\0".encode())
        whole.update(hashlib.blake2b(file.read_bytes()).digest())
    return whole.hexdigest()


def checkout() -> str | None:
    """The commit of the checkout that the package runs from, with ``-dirty`` where files differ; None: it is none."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
