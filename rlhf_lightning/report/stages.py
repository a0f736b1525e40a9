"""Stages of chains as runs of a report: what each computes apart from its seed, and their families."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.report.reading import STAGE, read_json

#: Folder of a stage, as later stages refer to it.
_FOLDER = re.compile(r"<chain>/(\w+)/([0-9a-f]{12})")
#: Digests of files written by other stages, which are already identified by those stages.
_FILES = "files"


def seedless(folder: Path, copies: Collection[str] = ()) -> dict[str, Any]:
    """Options that define what a stage computes, without the seed.

    Folders of earlier stages are replaced by digests of their options, which are without the seed, too.

    Args:
        folder: folder of the stage, ``<chain>/<stage>/<digest>``.
        copies: dotted keys that are left out if they equal the seed.
    """
    tree = dict(read_json(folder / STAGE).get("computes") or {})
    seed = tree.pop("seed", None)
    tree.pop(_FILES, None)
    chain = folder.parent.parent

    def identity(match: re.Match[str]) -> str:
        below = json.dumps(seedless(chain / match[1] / match[2], copies), sort_keys=True, default=str)
        return f"<chain>/{match[1]}/{hashlib.blake2b(below.encode(), digest_size=6).hexdigest()}"

    def followed(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            inside = {name: (f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()}
            kept = {name: part for name, part in inside.items() if not (part[0] in copies and part[1] == seed)}
            return {name: followed(inner, dotted) for name, (dotted, inner) in kept.items()}
        if isinstance(value, list):
            return [followed(inner, key) for inner in value]
        return _FOLDER.sub(identity, value) if isinstance(value, str) else value

    options: dict[str, Any] = followed(tree, "")
    return options


def family_of(stage: str) -> str:
    """Name of a stage without the number at its end: ``steer`` for ``steer_2``."""
    return re.sub(r"_\d+$", "", stage)
