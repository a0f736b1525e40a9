"""A run that is killed and resumed ends with the bits of the run that was not."""

from __future__ import annotations

import signal

import pytest
import torch

from rlhf_lightning.callbacks import ImplicitRewards
from rlhf_lightning.models.adapters.lora import Lora
from tests.helpers.adapter_jobs import fit_adapter, save_adapter
from tests.helpers.jobs import Memory, differences, final_state, fit, forked


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
    expected, resumed = final_state(whole), final_state(cut)
    assert expected["global_step"] == 15
    assert differences(expected, resumed) == []
    if kind == "preference":
        assert expected["reference"], "the refreshed reference is missing from the checkpoint"
        assert expected["state_dict"]["running.count"] > 0


def test_resumed_run_logs_what_the_whole_one_did(tmp_path):
    """Every metric of every step after the resume; fails when half a step is logged as a whole one."""
    logs = {"whole": Memory(), "cut": Memory()}
    assert forked(fit, tmp_path / "cut", "preference", 7, accumulate_grad_batches=2) == -signal.SIGKILL
    for name, logger in logs.items():
        fit(tmp_path / name, callbacks=(ImplicitRewards(),), accumulate_grad_batches=2, logger=logger)
    first = logs["cut"].rows[0]["step"]
    assert first == 6  # the step after the last save
    assert logs["cut"].rows == [row for row in logs["whole"].rows if row["step"] >= first]
    assert logs["cut"].series("train/reward/margin")


def test_the_reference_is_the_start_of_the_run_that_is_resumed(tmp_path):
    """The adapter that training began with lies in a folder that another run has written since."""
    start, whole, cut = tmp_path / "start", tmp_path / "whole", tmp_path / "cut"
    adapter = save_adapter(start, 0)
    fit_adapter(whole, adapter)
    assert forked(fit_adapter, cut, adapter, 5) == -signal.SIGKILL
    save_adapter(start, 1)
    fit_adapter(cut, adapter)
    assert differences(final_state(whole), final_state(cut)) == []


def test_a_start_that_no_seed_repeats_is_kept(tmp_path):
    """``adapter.seed=null``: every process draws another one."""
    adapter = Lora(r=2, init=False)
    assert forked(fit_adapter, tmp_path, adapter, 5) == -signal.SIGKILL
    before = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["reference_start"]
    fit_adapter(tmp_path, adapter)
    assert before
    assert differences(before, final_state(tmp_path)["reference_start"]) == []
