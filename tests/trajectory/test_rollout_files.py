"""Rollouts' files that are deleted: never one that a killed run would read."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rlhf_lightning.callbacks import RolloutFiles
from tests.helpers.jobs import differences, final_state, forked
from tests.helpers.online import fit


def kept(folder: Path) -> list[int]:
    return sorted(int(file.stem) for file in (folder / "rollouts").glob("*.jsonl"))


@pytest.mark.parametrize(("keep", "left"), [("all", [0, 1, 2, 3, 4, 5]), (2, [4, 5]), (0, [])])
def test_what_is_left_of_six_rollouts(tmp_path: Path, keep: int | str, left: list[int]) -> None:
    made = tmp_path / "rollouts" / "groups" / "00003.jsonl"  # as rounds have
    made.parent.mkdir(parents=True)
    made.touch()
    fit(tmp_path, callbacks=[RolloutFiles(keep)])  # type: ignore[arg-type]
    assert made.exists() == (keep == "all")
    assert kept(tmp_path) == left


def test_a_killed_run_draws_nothing_twice_though_none_are_kept(tmp_path: Path) -> None:
    """Four steps a rollout, a checkpoint after every third: killed in step 5, it resumes from step 3 with rollout 0,
    which the checkpoint holds, and reads rollout 1. Fails when a file goes as soon as the next rollout is drawn."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(whole, callbacks=[RolloutFiles(0)])
    assert forked(fit, cut, callbacks=[RolloutFiles(0)], kill_at=5) == -signal.SIGKILL
    assert kept(cut) == [1]
    fit(cut, callbacks=[RolloutFiles(0)])
    assert differences(final_state(whole), final_state(cut)) == []
    assert (whole / "drawn.txt").read_text() == (cut / "drawn.txt").read_text() == "8\n" * 6
    assert kept(cut) == []


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir(parents=True)
    for name in ("notes.txt", "graded.jsonl"):
        (tmp_path / "rollouts" / name).touch()
    fit(tmp_path, callbacks=[RolloutFiles(0)])
    assert sorted(file.name for file in (tmp_path / "rollouts").iterdir()) == ["graded.jsonl", "notes.txt"]


@pytest.mark.parametrize("keep", [-1, "some", 1.5, True])
def test_a_number_or_all(keep: object) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.rollout_files\.keep=.* must be all, or a number"):
        RolloutFiles(keep)  # type: ignore[arg-type]
