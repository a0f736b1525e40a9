"""The data module's optional inputs: numbers that a loss may need and the rows may lack."""

from __future__ import annotations

from dataclasses import replace

from rlhf_lightning.data.module import AlignmentDataModule
from tests.data.test_module import pairs


def test_has_input() -> None:
    for margin in (None, 0.5):
        data = AlignmentDataModule(pairs(margin=margin), validation=pairs(4, margin=margin))
        assert data.has_input("margin")  # nothing is known yet
        data.setup()
        assert data.has_input("margin") == (margin is not None)
        assert not data.has_input("win_probability")


def test_has_numbers_of_responses() -> None:
    """A win probability must be everywhere, and lie in [0, 1] where it is a list's score; a sample somewhere."""
    for name, everywhere in (("win_probability", True), ("policy_sample", False), ("reference_sample", False)):
        having = [replace(pair, numbers={name: [1.0, 0.0]}) for pair in pairs()]
        data = AlignmentDataModule(having, validation=pairs(4))
        assert data.has_input(name)
        data.setup()
        assert data.has_input(name) != everywhere
    for scores, expected in (([0.25, 1.0], True), ([0.25, 2.0], False), ([-0.5, 1.0], False)):
        lists = [replace(pair, margin=None, numbers={"score": scores}) for pair in pairs()]
        data = AlignmentDataModule(lists, kind="ranked", validation=None)
        data.setup()
        assert data.has_input("win_probability") == expected
