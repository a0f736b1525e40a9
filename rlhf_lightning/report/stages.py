"""Stages of chains as runs of a report: what each computes whatever its seed, and those of one family."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.report.reading import STAGE, read_json

#: A stage's folder, as the stages behind it name it.
_FOLDER = re.compile(r"<chain>/(\w+)/([0-9a-f]{12})")
#: Digests of files that other stages left: these are named by their stages already.
_FILES = "files"


def seedless(folder: Path, copies: Collection[str] = ()) -> dict[str, Any]:
    """What a stage computes, without the seed; so are the stages that it takes from, in the place of their folders.

    Args:
        folder: of the stage, ``<chain>/<stage>/<digest>``.
        copies: dotted keys that are left out where they equal the seed.
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

    found: dict[str, Any] = followed(tree, "")
    return found


def family_of(stage: str) -> str:
    """What stages have in common that a number at the end of their names tells apart: ``steer`` of ``steer_2``."""
    return re.sub(r"_\d+$", "", stage)
