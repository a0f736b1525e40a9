"""Commands that are killed anywhere and given again end with the files of the command that was not."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.helpers.faults import (
    METHODS,
    ROUND_METHODS,
    STAGES,
    Fault,
    command,
    discard,
    leftovers,
    printed,
    unbroken,
    unlike,
)

CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
#: Kills over all methods, with what draws them.
KILLS, SEED = 60, 11


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Import once what every command imports."""
    import rlhf_lightning.cli.evaluate
    import rlhf_lightning.cli.launch
    import rlhf_lightning.cli.train
    import rlhf_lightning.rounds  # noqa: F401


def check(whole: Path, cut: Path) -> None:
    assert command(cut, cut.parent.name) == 0, printed(cut)
    assert unlike(whole, cut) == [], printed(cut)
    assert leftovers([cut]) == []


@pytest.mark.slow
def test_killed_in_its_last_validation_its_export_and_a_rollout(tmp_path):
    """Fails where the resumed run ends without its last validation or export, or where its rows or rollouts differ."""
    whole, points = unbroken(tmp_path / "ppo" / "whole", "ppo")
    cut, last = tmp_path / "ppo" / "cut", points.count("validation") - 2
    assert command(cut, "ppo", Fault(at=1, point="rollout", number=signal.SIGINT)) == 130
    assert "same command" in printed(cut)
    for fault in (Fault(at=last, point="validation"), Fault(at=0, point="export")):
        assert command(cut, "ppo", fault) == -signal.SIGKILL, printed(cut)
    check(whole, cut)


@pytest.mark.slow
def test_killed_in_the_export_of_a_run_that_ended_early(tmp_path):
    """Fails where the resumed run trains on until its next validation."""
    whole, points = unbroken(tmp_path / "ended_early" / "whole", "ended_early")
    assert points.count("validation") < 40, "the run was not ended early"
    cut = tmp_path / "ended_early" / "cut"
    assert command(cut, "ended_early", Fault(at=0, point="export")) == -signal.SIGKILL, printed(cut)
    check(whole, cut)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_anywhere(tmp_path, method):
    """Each kill is drawn from all points that the unbroken run passes; every third run is killed twice."""
    whole, points = unbroken(tmp_path / method / "whole", method)
    draw = random.Random(f"{SEED} {method}")
    for number in range(-(-KILLS // len(METHODS))):
        cut = tmp_path / method / f"cut{number}"
        for _ in range(1 + (number % 3 == 2)):
            kind, at = draw.choice(list(CODES)), draw.randrange(len(points))
            code = command(cut, method, Fault(at=at, number=kind))
            what = f"{kind.name} at {points[at]} ({at} of {len(points)}): exit code {code}\n"
            assert code in (CODES[kind], 0), what + printed(cut)
        try:
            check(whole, cut)
        except AssertionError as error:
            error.add_note(what)
            raise
        discard(cut)


@pytest.mark.slow
@pytest.mark.parametrize("method", ROUND_METHODS)
def test_rounds_killed_in_each_stage(tmp_path, method):
    """Draw, score, select, train, write: each in the middle of the run, with rounds before and after it."""
    whole, points = unbroken(tmp_path / method / "whole", method)
    for stage, point in STAGES.items():
        cut, at = tmp_path / method / stage, points.count(point) // 2
        assert at > 0, f"the run passes no {point}"
        assert command(cut, method, Fault(at=at, point=point)) == -signal.SIGKILL, printed(cut)
        check(whole, cut)
        discard(cut)
