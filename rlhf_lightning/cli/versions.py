"""Versions of what a run stood on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from rlhf_lightning.version import __version__

PACKAGES = ("torch", "lightning", "transformers", "peft", "datasets", "hydra-core")


def versions() -> dict[str, str]:
    """Python, this package and the main ones beneath it."""
    found = {"python": platform.python_version(), "rlhf-lightning": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
