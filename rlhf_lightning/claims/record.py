"""``docs/claims.json``: what arms measured, with what it was measured; plain containers, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.claims import code
from rlhf_lightning.claims.claim import Arm
from rlhf_lightning.files import write_atomically


@dataclass(frozen=True)
class Measurement:
    """Metrics of an arm's jobs and what they follow from."""

    seeds: tuple[int, ...]
    metrics: Mapping[str, tuple[float | None, ...]]  #: a number a seed; None: it was not finite
    code: str  #: digest of what the jobs depend on, see :mod:`rlhf_lightning.claims.code`
    commit: str | None
    versions: Mapping[str, str]
    date: str
    seconds: float
    confirmed: str | None = None  #: when the first seed gave the same numbers with later code

    def has(self, arm: Arm, metrics: set[str]) -> bool:
        """Tell whether it covers an arm's seeds and these metrics."""
        return self.seeds == arm.seeds and metrics <= self.metrics.keys()


def code_of(arm: Arm) -> str:
    """Digest of the code behind an arm and behind what it starts from."""
    return code.digest(arm.options) + ("" if arm.start is None else f"-{code_of(arm.start)}")


def read(file: Path) -> dict[str, Measurement]:
    """Measurements by the command of their arm; none where there is no file."""
    if not file.is_file():
        return {}
    arms: Mapping[str, Mapping[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["arms"]
    return {command: _measurement(values) for command, values in arms.items()}


def write(file: Path, arms: Mapping[str, Measurement], claims: Mapping[str, Any]) -> None:
    """Write measurements and, for readers, what the board makes of them.

    Args:
        file: to write.
        arms: by command.
        claims: verdicts by paper, in plain containers.
    """
    content = {"claims": claims, "arms": {command: asdict(arms[command]) for command in sorted(arms)}}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _measurement(values: Mapping[str, Any]) -> Measurement:
    lists = {name: tuple(numbers) for name, numbers in values["metrics"].items()}
    return Measurement(**{**values, "seeds": tuple(values["seeds"]), "metrics": lists})
