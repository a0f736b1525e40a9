"""Sweeps: all jobs run, one that fails takes no other with it, and the table holds them all."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.sweep import gather, varying


def rows(folder) -> list[dict[str, str]]:
    with (folder / "multirun.csv").open() as file:
        return list(csv.DictReader(file))


def test_multirun_over_methods(rlhf, tiny, tmp_path):
    code, out, err = rlhf("train", "-m", "method=dpo,simpo", *tiny, "paths.output_dir=sweep")
    assert code == 0, err
    table = rows(tmp_path / "sweep")
    assert [(row["job"], row["method"], row["status"], row["steps"]) for row in table] == [
        ("0", "dpo", "done", "2"),
        ("1", "simpo", "done", "2"),
    ]
    assert all(float(row["val/loss"]) > 0 for row in table)
    assert "job 1  method=simpo" in out
    assert "2 jobs" in out


def test_a_failed_job_does_not_lose_the_others(rlhf, tiny, tmp_path):
    code, _, err = rlhf("train", "-m", "optimizer.lr=1e30,1e-3", *tiny, "paths.output_dir=sweep")
    assert code == 1
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["failed", "done"]
    assert "1 of 2 jobs failed: 0" in err
    assert Result.read(tmp_path / "sweep" / "0").error


def test_a_sweep_file_starts_a_sweep_by_itself(rlhf, tiny, tmp_path):
    code, _, err = rlhf("train", "sweep=beta", "hydra.sweeper.params={method.loss.beta: '0.1,0.2'}", *tiny)
    assert code == 0, err
    (folder,) = (tmp_path / "multirun").iterdir()
    table = rows(folder)
    assert [row["method.loss.beta"] for row in table] == ["0.1", "0.2"]
    assert all(row["value"] == row["val/reward/accuracy"] for row in table)


def test_only_what_differs_is_shown():
    jobs = {"0": Result("done", overrides=["a=1", "b=2"]), "1": Result("done", overrides=["a=1", "++b=3", "c=4"])}
    assert varying(jobs) == {"0": {"b": "2", "c": ""}, "1": {"b": "3", "c": "4"}}


def test_jobs_are_gathered_in_their_order(tmp_path):
    for number in (10, 9, 0):
        Result("done", seconds=number).write(tmp_path / str(number))
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "result.json").write_text('{"stat')  # a kill in the middle
    assert list(gather(tmp_path)) == ["0", "9", "10"]


@pytest.mark.slow
def test_sweep_over_numbers_of_processes(tiny, pairs, tmp_path):
    """Hydra's -m with DDP: every job has its own processes, and two of them compute what one does."""
    command = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", "-m", "strategy=ddp", "strategy.devices=1,2"]
    # All eight pairs are trained on, so no group is left over: those are dealt out by the number of micro-batches.
    held_out = f"data.validation={{_target_:rlhf_lightning.data.Files,path:{pairs}}}"
    options = [*tiny, held_out, "paths.output_dir=sweep"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "sweep")
    assert (one["status"], two["status"]) == ("done", "done")
    assert float(two["train/loss"]) == pytest.approx(float(one["train/loss"]), abs=1e-6)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["sweep"], "a child has started a sweep of its own"


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side(tiny, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", "-m", "hydra/launcher=joblib"]
    command += ["hydra.launcher.n_jobs=2", "optimizer.lr=1e30,1e-3"]
    done = subprocess.run([*command, *tiny, "paths.output_dir=sweep"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["failed", "done"]
