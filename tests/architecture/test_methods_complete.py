"""Every loss has a yaml, a golden row and a METHODS.md entry, and every yaml states what it is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

import rlhf_lightning.losses as losses

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
YAMLS = sorted(CONF.rglob("*.yaml"))


def targets(node: object) -> set[str]:
    if isinstance(node, dict):
        at_node = {node["_target_"]} if isinstance(node.get("_target_"), str) else set()
        return at_node | {name for value in node.values() for name in targets(value)}
    return {name for value in node for name in targets(value)} if isinstance(node, list) else set()


def loss_functions() -> list[str]:
    return [name for name in losses.__all__ if inspect.isfunction(getattr(losses, name)) and name.islower()]


USED = {
    name.rpartition(".")[2]
    for file in (CONF / "method").glob("*.yaml")
    for name in targets(yaml.safe_load(file.read_text()))
}
FUNCTIONS = sorted(
    name for name in loss_functions() if name in USED or "Source" in (getattr(losses, name).__doc__ or "")
)


def test_there_are_losses():
    assert len(FUNCTIONS) > 20


@pytest.mark.parametrize("name", FUNCTIONS)
def test_loss_is_complete(name):
    assert name in USED, "no conf/method/*.yaml uses it"
    golden = "".join(path.read_text() for path in (ROOT / "tests" / "losses").glob("*golden*.py"))
    assert re.search(rf"\b{name}\b", golden), "no golden row"
    document = getattr(losses, name).__doc__ or ""
    assert "Source" in document, "the docstring names no source"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_method_is_documented(name):
    assert re.search(rf"\b{name}\b", (ROOT / "METHODS.md").read_text()), "run `make docs`"


def test_yaml_begins_with_what_it_is_and_a_command():
    wrong = []
    for file in YAMLS:
        first = [line for line in file.read_text().splitlines()[:4] if line.startswith("#") and "@package" not in line]
        if "rlhf " not in " ".join(first):
            wrong.append(file.relative_to(CONF).as_posix())
    assert wrong == [], "the first comment says what it is, its source, and a command to copy"


@pytest.mark.parametrize(
    "path",
    [p for group in ("prompting", "search", "guidance") for p in sorted((CONF / group).glob("*.yaml"))],
    ids=lambda p: p.stem,
)
def test_what_trains_nothing_is_complete(path: Path):
    if path.stem == "none":
        assert yaml.safe_load(path.read_text()) == {}
        return
    name = yaml.safe_load(path.read_text())["_target_"].rpartition(".")[2]
    files = [*(ROOT / "tests" / "prompting").glob("test_*.py"), ROOT / "tests" / "models" / "test_guidance.py"]
    tests = "".join(file.read_text() for file in files)
    assert re.search(rf"\b{name}\(", tests), "no test makes it"
    page = "guidance.md" if path.parent.name == "guidance" else "prompting.md"
    text = (ROOT / "docs" / page).read_text()
    assert f"`{path.stem}`" in text or f"search={path.stem}" in text
    written = (ROOT / "docs" / "methods" / "without_training.md").read_text()
    assert re.search(rf": {path.stem}$", written, re.MULTILINE), "run `make docs`"
