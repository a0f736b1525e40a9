"""``chain.json``: which stages a chain ran, for reports and for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.files import write_atomically

#: In the folder of a chain, and in that of each stage.
CHAIN, STAGE = "chain.json", "stage.json"


@dataclass
class Finished:
    """A chain as far as it got.

    Attributes:
        options: that differ between the chains of a sweep.
        stages: of each, ``name``, ``command``, ``folder`` below the chain's, ``needs`` and ``options``.
    """

    options: list[str]
    stages: list[dict[str, Any]]


def write_chain(folder: Path, size: str, chains: Sequence[Finished]) -> None:
    """Write what the chains of a command ran so far."""
    write_json(folder / CHAIN, {"size": size, "chains": [asdict(chain) for chain in chains]})


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, default=str) + "\n"
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a file; None if it is missing or unreadable."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
