"""The test of a module is where its path says, or the table of tests/README.md says where."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("tests_table", ROOT / "tools" / "tests_table.py")
assert _SPEC is not None
assert _SPEC.loader is not None
table = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(table)


def test_every_module_has_tests():
    untested = [module for module, _, tests in table.rows() if not tests]
    assert untested == [], "no test imports them or their users: add tests/<package>/test_<module>.py"


def test_the_table_is_current():
    assert table.TABLE.read_text(encoding="utf-8") == table.text(), "run `python tools/tests_table.py`"


def test_folders_of_tests_are_packages_or_listed():
    """A folder of another name would hold tests that nobody looks for there."""
    folders = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("*.py")} - {Path()}
    packages = {file.parent.relative_to(table.PACKAGE) for file in table.PACKAGE.rglob("__init__.py")}
    assert sorted(folders - packages - {Path(name) for name in table.ACROSS}) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from rlhf_lightning.data import Files", "rlhf_lightning.data.sources.files"),
        ("import rlhf_lightning.losses as losses\nlosses.dpo", "rlhf_lightning.losses.preference"),
        ("from rlhf_lightning.data.tokens import encode", "rlhf_lightning.data.tokens.encode"),
        ("def f(m):\n    m.setattr('rlhf_lightning.models.gguf.files.load', None)", "rlhf_lightning.models.gguf.files"),
    ],
)
def test_uses_are_noticed(tmp_path, source, module):
    """The check itself: lazy names, names taken of a package, modules, and names in strings."""
    file = tmp_path / "test_it.py"
    file.write_text(source)
    assert module in table.used(file)
