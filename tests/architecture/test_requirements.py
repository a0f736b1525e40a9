"""Ranges of what the package needs end before releases that nobody has tried, and hold what constraints.txt pins."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
PINNED = {name.lower().replace("_", "-"): Version(version) for name, version in PINS.items()}
#: Of these a minor release may rename what our code calls.
BY_MINOR = {"torch", "lightning", "transformers", "peft"}
#: What hydra-ray-launcher 1.2.2 (the first two) and mlflow 3.17 want older than the other extras do.
UNPINNED = ("cloudpickle", "python-dateutil", "pyarrow")


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_a_range_ends_before_what_was_not_tried(needed):
    pinned = PINNED.get(needed.name.lower())
    if pinned is None:
        assert needed.name in UNPINNED
        assert "<" in str(needed.specifier)
        return
    assert not needed.specifier.contains(f"{pinned.major + 1}.0")
    if needed.name in BY_MINOR:  # the newest that was tried may be one ahead of what is pinned
        assert not needed.specifier.contains(f"{pinned.major}.{pinned.minor + 2}.0")


@pytest.mark.parametrize("extra", EXTRAS)
def test_constraints_are_within_the_ranges(extra):
    for needed in NEEDED + EXTRAS[extra]:
        pinned = PINNED.get(needed.name.lower().replace("_", "-"))
        assert pinned is None or needed.specifier.contains(pinned), f"{needed} and {pinned}"


@pytest.mark.parametrize("name", UNPINNED)
def test_what_an_extra_wants_older_is_not_pinned(name):
    """`pip install -c constraints.txt '.[ray]'` and `.[mlflow]` would find no versions."""
    assert name not in PINNED
