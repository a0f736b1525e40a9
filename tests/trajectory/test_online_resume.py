"""An on-policy run that is killed and resumed ends with the bits of the run that was not, and draws nothing twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rlhf_lightning.credit import rloo
from tests.helpers.jobs import differences, final_state, forked, ranks
from tests.helpers.online import fit, module_of, rollouts

#: Four steps a rollout, a checkpoint after every third step.
KILLS = [
    pytest.param({"kill_call": 3}, id="while-rollout-2-is-drawn"),
    pytest.param({"kill_at": 4}, id="between-rollout-1-and-its-first-step"),
    pytest.param({"kill_at": 7}, id="in-the-inner-epochs-of-rollout-1"),
    pytest.param({"kill_at": 12}, id="at-the-end-of-an-epoch"),
]
TWO = {"strategy": "ddp", "devices": 2}


def drawn(folder: Path, share: int) -> int:
    """Calls of the engine, over all processes, that drew for this many prompts to the end."""
    return (folder / "drawn.txt").read_text().split().count(str(share))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "kill",
    [
        pytest.param(*kill.values, id=kill.id, marks=pytest.mark.slow) if at != 2 else kill
        for at, kill in enumerate(KILLS)
    ],
)
def test_killed_and_resumed(tmp_path, accumulate, kill):
    """Weights, optimiser, controller, running scales, the rollout at hand, the files.

    Fails when the loader leaves its rollout out of the checkpoint, when a sample's stream depends on what was drawn
    before, when credit is assigned a second time to a rollout that a checkpoint holds, or when a rollout that is on
    disk is drawn again.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, accumulate_grad_batches=accumulate)
    assert forked(fit, cut, accumulate_grad_batches=accumulate, **kill) == -signal.SIGKILL
    fit(cut, accumulate_grad_batches=accumulate)
    one, other = final_state(whole), final_state(cut)
    assert one["global_step"] == 24
    assert differences(one, other) == []
    assert rollouts(whole) == rollouts(cut)
    assert len(rollouts(whole)) == 6
    assert drawn(whole, 8) == drawn(cut, 8) == 6


@pytest.mark.parametrize(
    "kill", [KILLS[0], *(pytest.param(*kill.values, id=kill.id, marks=pytest.mark.slow) for kill in KILLS[1:3])]
)
def test_killed_and_resumed_in_two_processes(tmp_path, kill):
    """Both die; the checkpoint holds process 0's state alone."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert ranks(2, fit, whole, **TWO) == [0, 0]
    assert ranks(2, fit, cut, **TWO, **kill) == [-signal.SIGKILL] * 2
    assert ranks(2, fit, cut, **TWO) == [0, 0]
    one, other = final_state(whole), final_state(cut)
    assert one["global_step"] == 24
    assert differences(one, other) == []
    assert rollouts(whole) == rollouts(cut)
    assert drawn(whole, 4) == drawn(cut, 4) == 2 * 6


def test_rollouts_of_other_weights_are_not_taken(tmp_path):
    """A folder that another run left: its files have other keys."""
    fit(tmp_path / "run", max_steps=4)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    fit(tmp_path / "run", max_steps=8, make=lambda: module_of(advantage=rloo))
    assert drawn(tmp_path / "run", 8) == 1 + 1  # the first rollout's weights are the same, the second one's are not
