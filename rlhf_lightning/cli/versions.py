"""Versions of what a run stood on."""

from __future__ import annotations

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
