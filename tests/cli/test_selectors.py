"""Selectors in docs/methods and ``rlhf methods NAME``."""

from __future__ import annotations

import pytest

import rlhf_lightning.selection as selection
from rlhf_lightning.cli.methods import main
from rlhf_lightning.cli.selectors import selection_page, selectors

NAMES = [name for name in selection.__all__ if getattr(getattr(selection, name), "declares", "") == "selector"]


def test_every_selector_has_its_entry() -> None:
    page = "\n".join(selection_page())
    assert set(selectors()) == set(NAMES)
    assert next(iter(selectors())) == "best_and_worst"  # in the order of the package's docstring
    for name in NAMES:
        entry = page.partition(f"### Selector: {name}\n")[2].partition("\n###")[0]
        assert all(part in entry for part in ("```math", "- Paper: ", "- Defaults: ", "- Deviations: "))
        assert f"`rlhf_lightning.selection.{name}(" in entry


def test_one_selector_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["length_calibrated"]) == 0
    output = capsys.readouterr().out
    assert "Bootstrapping Language Models with DPO Implicit Rewards" in output
    assert "selection/calibrated.py" in output
