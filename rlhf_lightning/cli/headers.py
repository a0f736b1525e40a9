"""Header of a yaml of ``conf/``: ``# Title (paper). rlhf train ...``, remarks below, and its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.cli.errors import ConfigError

_HEADER = re.compile(r"# (?P<title>.+) \((?P<paper>[^()]+)\)\. (?P<command>rlhf .+)")


@dataclass(frozen=True)
class Header:
    """The comment lines at the top of a file."""

    title: str
    paper: str
    command: str
    remarks: tuple[str, ...] = ()  #: the lines below the first one


def read_yaml(path: Path, command: str) -> tuple[Header, dict[str, Any]]:
    """Header and body of a file.

    Args:
        path: of the file.
        command: with which its own command line begins, for the message.

    Raises:
        ConfigError: its first line is not ``# title (paper). command``.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    comments = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    match = _HEADER.fullmatch(comments[0]) if comments else None
    if match is None:
        raise ConfigError(f"{path}: the first line must be `# title (paper). {command} ...`")
    remarks = tuple(line.lstrip("# ") for line in comments[1:])
    return Header(**match.groupdict(), remarks=remarks), yaml.safe_load(text) or {}


def options(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a config node, with dotted keys; Hydra's own keys and its defaults list left out."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from options(value, f"{prefix}{key}.")
        elif not str(key).startswith("_") and key != "defaults":
            yield f"{prefix}{key}", value


def plain(value: Any) -> str:
    """A value as yaml writes it, floats as short as they are exact."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):  # 1 == True
        return str(value).lower()
    return "null" if value is None else str(value)
