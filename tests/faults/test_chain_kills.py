"""A chain that is killed in each of its stages and given again ends with the files of the chain that was not."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers.faults import CHAINS, RAHF, Fault, command, leftovers, printed, unbroken, unlike


def check(whole: Path, cut: Path, chain: str) -> None:
    """The chain given again ends with the files of the whole one; once more, it finds every stage done."""
    assert command(cut, chain) == 0, printed(cut)
    for stage in CHAINS[chain]["stages"]:
        (one,), (other,) = ([*folder.glob(f"{stage}/*")] for folder in (whole, cut))
        assert one.name == other.name
        assert unlike(one, other) == [], printed(cut)
    assert leftovers([cut]) == []
    assert command(cut, chain) == 0
    assert printed(cut).count("was done before") >= len(CHAINS[chain]["stages"])


@pytest.mark.slow
def test_killed_in_every_stage(tmp_path):
    """In the first stage's training, in the second's end, and behind the third's export."""
    whole, _ = unbroken(tmp_path / "whole", "chain")
    cut = tmp_path / "cut"
    for fault in (Fault(at=3, point="step"), Fault(at=2, point="end"), Fault(at=3, point="end")):
        assert command(cut, "chain", fault) == -signal.SIGKILL, printed(cut)
    check(whole, cut, "chain")


@pytest.mark.slow
@pytest.mark.parametrize("chain", RAHF)
def test_killed_while_states_are_fitted(tmp_path, chain):
    """Between two checkpoints of the stage that fits hidden states, and again in the validation behind them.

    Dropout of the adapter and the states of a frozen model must both be what they were.
    """
    whole, points = unbroken(tmp_path / "whole", chain)
    cut = tmp_path / "cut"
    for fault in (Fault(at=points.count("step") - 5, point="step"), Fault(at=0, point="validation")):
        assert command(cut, chain, fault) == -signal.SIGKILL, printed(cut)
        (stage,) = cut.glob("states/*")
        assert not (stage / "result.json").exists(), printed(cut)
    check(whole, cut, chain)
