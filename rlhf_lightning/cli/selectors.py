"""Selectors in docs/methods and ``rlhf methods NAME``, read from their docstrings as losses are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from rlhf_lightning.cli.docstrings import FunctionDoc, function_docs
from rlhf_lightning.cli.method_sections import function_section

SELECTION = Path(__file__).resolve().parents[1] / "selection"
#: How a function's docstring becomes lines of a page, given its package.

_INTRODUCTION = """What makes groups of the samples of a whole round (`rounds=...`, option `rounds.selector`). It
sees every prompt's samples with their scores, lengths and whether they were cut off, and says which become which
groups. Samples without a score are in no group, and what is left out is counted. Samples that were cut off at the
length limit get no end-of-sequence token that they did not draw; they are in no group (`cut_off=drop`), may lose
(`lose`), or count as finished ones (`keep`), for responses of a fixed length. $`s_i`$ is the score of sample i of a
prompt, $`y_w`$ the chosen and $`y_l`$ the rejected response.
Tests (`tests/selection`): golden groups, a plain-loop twin on generated rounds, and properties."""


def selectors() -> dict[str, FunctionDoc]:
    """All selectors by name, in the order of the list in the docstring of ``rlhf_lightning.selection``."""
    docs = {doc.name: doc for doc in function_docs(SELECTION)}
    text = ast.get_docstring(ast.parse((SELECTION / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = " ".join(re.findall(r"^\* [^:\n]+: ``([^`]+)``", text, flags=re.MULTILINE)).split()
    return {name: docs[name] for name in [*listed, *sorted(docs.keys() - set(listed))]}


def selector_lines(name: str) -> list[str]:
    """One selector as lines of a page."""
    return ["", f"### Selector: {name}", "", *function_section(selectors()[name], "selection")]


def selection_page() -> list[str]:
    """All selectors as lines of a page."""
    lines = [line for name in selectors() for line in selector_lines(name)]
    return ["", "## Selection", "", _INTRODUCTION, *lines]
