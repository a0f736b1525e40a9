"""A chain that is killed in each of its stages and given again ends with the files of the chain that was not."""

from __future__ import annotations

import signal

import pytest

from tests.helpers.faults import CHAIN, Fault, command, leftovers, printed, unbroken, unlike


@pytest.mark.slow
def test_killed_in_every_stage(tmp_path):
    """In the first stage's training, in the second's end, and behind the third's export."""
    whole, _ = unbroken(tmp_path / "whole", "chain")
    cut = tmp_path / "cut"
    for fault in (Fault(at=3, point="step"), Fault(at=2, point="end"), Fault(at=3, point="end")):
        assert command(cut, "chain", fault) == -signal.SIGKILL, printed(cut)
    assert command(cut, "chain") == 0, printed(cut)
    for stage in CHAIN["stages"]:
        (one,), (other,) = ([*folder.glob(f"{stage}/*")] for folder in (whole, cut))
        assert one.name == other.name
        assert unlike(one, other) == [], printed(cut)
    assert leftovers([cut]) == []
    assert command(cut, "chain") == 0
    assert printed(cut).count("was done before") >= len(CHAIN["stages"])
