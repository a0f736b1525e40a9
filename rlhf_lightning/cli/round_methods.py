"""``conf/rounds`` in docs/methods and ``rlhf methods NAME``: draws, selector, and the methods that it goes with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.cli.headers import Header, options, plain, read_yaml
from rlhf_lightning.cli.method_sections import linked
from rlhf_lightning.conf_dir import conf_dir

_INTRODUCTION = """How a method learns from groups of its own samples in place of the data's: `rounds=...` beside
`method=...`. Each round draws responses to new prompts, scores them (`reward=...`), lets a [selector](#selection) make
groups of them and trains on those. `rounds.reference` says what the loss compares with, `rounds.carry` which earlier
rounds are trained on again. Files of samples and groups lie in the run's folder `rollouts`."""
#: A line of remarks with the other methods that rounds go with.
_ALSO = "Also: "


@dataclass(frozen=True)
class RoundsEntry:
    """One yaml of conf/rounds."""

    name: str
    header: Header
    body: Mapping[str, Any]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that its header names, the command's first."""
        others = [line.removeprefix(_ALSO).split(", ") for line in self.header.remarks if line.startswith(_ALSO)]
        return (*re.findall(r"\bmethod=(\w+)", self.header.command), *(name for names in others for name in names))

    @property
    def remarks(self) -> str:
        """Remarks of its header."""
        return " ".join(line for line in self.header.remarks if not line.startswith(_ALSO))


def rounds_entries() -> dict[str, RoundsEntry]:
    """All files of conf/rounds by name, but ``none``.

    Raises:
        ConfigError: a file's first line is not ``# title (paper). command``.
    """
    paths = [path for path in sorted((conf_dir() / "rounds").glob("*.yaml")) if path.stem != "none"]
    return {path.stem: RoundsEntry(path.stem, *read_yaml(path, f"rlhf train rounds={path.stem}")) for path in paths}


def rounds_lines(entry: RoundsEntry) -> Iterator[str]:
    """One file as lines of a page.

    Args:
        entry: the file.
    """
    selector = str(entry.body["selector"]["_target_"]).rpartition(".")[2]
    chosen = {key: value for key, value in options(entry.body) if key != "draws"}
    yield from (f"### Rounds: {entry.name}", "", f"{entry.header.title}.")
    yield from ["", entry.remarks] if entry.remarks else []
    yield ""
    yield f"- Paper: {linked(entry.header.paper)}"
    yield f"- Draws: {'; '.join(map(_draw, entry.body['draws']))}"
    yield f"- Selector: [{selector}](#selector-{selector})"
    yield f"- Methods: {', '.join(f'[{name}](#{name})' for name in entry.methods)}"
    yield f"- Yaml: `conf/rounds/{entry.name}.yaml`: " + ", ".join(f"`{k}={plain(v)}`" for k, v in chosen.items())
    yield f"- Run: `{entry.header.command}`"


def rounds_page() -> list[str]:
    """All files as lines of a page."""
    lines = ["", "## Rounds", "", _INTRODUCTION]
    for entry in rounds_entries().values():
        lines += ["", *rounds_lines(entry)]
    return lines


def _draw(draw: Mapping[str, Any]) -> str:
    count, source = draw.get("n", 1), draw.get("source", "policy")
    if source == "data":
        return "the data's own response"
    mix = f" (mix {plain(draw['mix'])})" if "mix" in draw else ""
    return (
        f"{count} response{'s' if count > 1 else ''} of the {source}{mix} at temperature "
        f"{plain(float(draw.get('temperature', 1.0)))}"
    )
