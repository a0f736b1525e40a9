"""Transforms and searches of prompts, and guidance, in docs/methods and ``rlhf methods NAME``: yaml and docstring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.cli.docstrings import FunctionDoc, class_docs
from rlhf_lightning.cli.headers import Header, options, plain, read_yaml
from rlhf_lightning.cli.method_sections import linked, markdown
from rlhf_lightning.conf_dir import conf_dir

PACKAGE = Path(__file__).resolve().parents[1]
#: Groups of conf/, and what their files are called.
GROUPS = {"prompting": "Prompt", "search": "Search", "guidance": "Guidance"}

_INTRODUCTION = """Nothing is trained here: `prompting=...` changes what a model is given, in rows, rollouts,
evaluation and generation alike, and `rlhf optimize_prompt search=...` looks for a text to give
([docs/prompting.md](docs/prompting.md)). Tests (`tests/prompting`): prompts to the letter, golden retrieval and Pareto
front, a copying rewriter changes no token, the numeric demos without a language model, and a search that is killed at
every row of its file.

`guidance=...` changes how tokens are drawn, in rollouts and `rlhf generate` ([docs/guidance.md](docs/guidance.md)).
Tests (`tests/models/test_guidance.py`): golden values, the identities at the ends of each option, and plain loops
without a cache."""


@dataclass(frozen=True)
class PromptEntry:
    """One file of a group."""

    group: str
    name: str
    header: Header
    body: dict[str, Any]
    doc: FunctionDoc


def prompt_entries() -> dict[str, PromptEntry]:
    """All files of the groups by name, but ``none``.

    Raises:
        ConfigError: a file's first line is not ``# title (paper). command``.
    """
    docs = {doc.name: doc for part in ("prompting", "models") for doc in class_docs(PACKAGE / part)}
    entries = {}
    for group in GROUPS:
        for path in sorted((conf_dir() / group).glob("*.yaml")):
            if path.stem != "none":
                header, body = read_yaml(path, f"rlhf ... {group}={path.stem}")
                entries[path.stem] = PromptEntry(group, path.stem, header, body, docs[_class_of(body)])
    return entries


def prompt_lines(entry: PromptEntry) -> Iterator[str]:
    """One file as lines of a page.

    Args:
        entry: the file.
    """
    yield from (f"### {GROUPS[entry.group]}: {entry.name}", "", markdown(entry.doc.summary))
    yield from ["", markdown(entry.doc.notes)] if entry.doc.notes else []
    yield ""
    yield f"- Paper: {linked(markdown(entry.doc.source))}"
    target = str(entry.body["_target_"])
    yield f"- Class: `{target}` in `{target.split('.')[1]}/{entry.doc.file}`"
    values = ", ".join(f"`{key}={_one_line(value)}`" for key, value in options(entry.body))
    yield f"- Yaml: `conf/{entry.group}/{entry.name}.yaml`: {values}"
    yield f"- Run: `{entry.header.command}`"
    if entry.doc.differences:
        yield f"- Deviations: {markdown(entry.doc.differences)}"


def prompt_page() -> list[str]:
    """All files as lines of a page."""
    lines = ["", "## Without training", "", _INTRODUCTION]
    for entry in prompt_entries().values():
        lines += ["", *prompt_lines(entry)]
    return lines


def _class_of(body: dict[str, Any]) -> str:
    return str(body["_target_"]).rpartition(".")[2]


def _one_line(value: Any) -> str:
    return plain(value).replace("\n", "\\n")
