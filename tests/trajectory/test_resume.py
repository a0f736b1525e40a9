"""A run that is killed and resumed ends with the bits of the run that was not."""

from __future__ import annotations

import signal

import pytest

from tests.helpers.jobs import differences, final_state, fit, forked


@pytest.mark.parametrize("kind", ["preference", "supervised"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "kill_at",
    [
        pytest.param(3, id="mid-epoch"),  # the last save is at step 2
        pytest.param(7, id="second-epoch"),
        pytest.param(10, id="epoch-end"),  # saved at step 10, the last of an epoch of 5
    ],
)
def test_resume_after_kill(tmp_path, kind, accumulate, kill_at):
    """Weights, optimiser, schedule, loader, generators, running moments, average and refreshed reference.

    Fails without StepSeed (dropout), without the loader's position, or when any of the states is left out.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, kind, accumulate_grad_batches=accumulate)
    assert forked(fit, cut, kind, kill_at, accumulate_grad_batches=accumulate) == -signal.SIGKILL
    assert (cut / "checkpoints" / "last.ckpt").exists()
    fit(cut, kind, accumulate_grad_batches=accumulate)
    expected, found = final_state(whole), final_state(cut)
    assert expected["global_step"] == 15
    assert differences(expected, found) == []
    if kind == "preference":
        assert expected["reference"], "the refreshed reference is missing from the checkpoint"
        assert expected["state_dict"]["running.count"] > 0
