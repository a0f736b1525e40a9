"""Folders, globs and files that are cut short."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_lightning.report.leaderboard import steps_of
from rlhf_lightning.report.reading import ReportError, read_curves, read_run, read_runs
from tests.helpers.synthetic_runs import write_run, write_sweep


def names(*paths):
    return [run.name for run in read_runs(paths)]


def test_folders_sweeps_globs_and_files(tmp_path):
    """Jobs come in the order of their numbers, each run once however often it is named."""
    write_sweep(tmp_path / "sweep", ["dpo", "ipo", "kto", "orpo"], seeds=3)
    write_run(tmp_path / "single")
    assert names(tmp_path / "sweep") == [str(number) for number in range(12)]
    assert names(tmp_path / "single") == ["single"]
    assert names(tmp_path / "sweep" / "1*") == ["1", "10", "11"]
    assert names(tmp_path / "sweep" / "2" / "metrics.csv", tmp_path / "sweep" / "2") == ["2"]
    assert names(tmp_path / "single", tmp_path / "sweep" / "0") == ["single", "sweep/0"]


def test_folders_inside_a_run_are_not_runs(tmp_path):
    write_run(tmp_path / "run")
    write_run(tmp_path / "run" / "export" / "config")
    write_run(tmp_path / "report" / "old")
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize(("path", "part"), [("swep", "Did you mean"), ("nothing/*", "no such file")])
def test_a_path_that_is_not_there(tmp_path, path, part):
    write_run(tmp_path / "sweep" / "0")
    with pytest.raises(ReportError, match=part):
        read_runs([tmp_path / path])


def test_no_runs(tmp_path):
    with pytest.raises(ReportError, match=r"no runs in .*\n.*config.yaml"):
        read_runs([tmp_path])


def test_states(tmp_path):
    """A run without a result is unfinished; its numbers are the last logged ones."""
    runs = [
        read_run(write_run(tmp_path / "a"), "a"),
        read_run(write_run(tmp_path / "b", status=None), "b"),
        read_run(write_run(tmp_path / "c", status="failed", error="first\nsecond"), "c"),
    ]
    assert [run.state for run in runs] == ["done", "unfinished", "failed"]
    assert runs[2].error == "first"
    assert steps_of(runs[0]) == 200
    assert steps_of(runs[1]) == 66
    assert runs[1].metrics["train/loss"] == runs[1].curves["train/loss"][1][-1]


def test_damaged_files_count_as_missing(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "result.json").write_text('{"status": "do')
    (folder / "config.yaml").write_text("a: [")
    (folder / "implicit_rewards.npz").write_bytes(b"PK\x03\x04 cut")
    run = read_run(folder, "a")
    assert (run.state, run.config, run.rewards, run.seed) == ("unfinished", {}, None, None)


def test_curves(tmp_path):
    """Empty cells and nan are gaps; the last line was being written when the run was killed."""
    file = tmp_path / "metrics.csv"
    file.write_text("step,epoch,a,b\n0,0,1.5,\n1,0,nan,2\n2,0,inf,3\n3,0,4")
    curves = read_curves(file)
    assert sorted(curves) == ["a", "b"]
    assert [values.tolist() for values in curves["a"]] == [[0.0], [1.5]]
    assert [values.tolist() for values in curves["b"]] == [[1.0, 2.0], [2.0, 3.0]]
    assert read_curves(tmp_path / "none.csv") == {}


def logged(folder, csv, metrics=None):
    """Write a run with these metrics in its two files."""
    write_run(folder, status=None if metrics is None else "done")
    (folder / "metrics.csv").write_text(csv)
    if metrics is not None:
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"metrics": metrics}))
    return read_run(folder, folder.name)


def test_result_metrics_win_and_null_is_no_result(tmp_path):
    """Fails if an older value replaces a last value that is not finite or was not measured."""
    csv = "step,train/loss,val/loss,val/sample/win_rate\n9,0.5,0.75,0.9\n19,0.4,0.5,\n"
    run = logged(tmp_path / "a", csv, {"val/loss": 0.25, "train/loss": None, "val/sample/win_rate": None})
    assert run.metrics == {"val/loss": 0.25}


def test_the_value_before_training_is_no_result(tmp_path):
    """Step 0 of a sample table or of a world's gold reward is a curve's first point, never a result."""
    csv = "step,train/loss,val/gold/reward,val/kl/reference,val/loss\n0,0.7,1.5,0.0,\n1,0.6,,,0.5\n"
    assert logged(tmp_path / "killed", csv).metrics == {"train/loss": 0.6, "val/loss": 0.5}
    done = logged(tmp_path / "done", csv, {"train/loss": 0.6, "val/loss": 0.5})
    assert done.metrics == {"train/loss": 0.6, "val/loss": 0.5}
    assert done.curves["val/gold/reward"][1].tolist() == [1.5]
    measured = logged(tmp_path / "one_step", csv, {"val/gold/reward": 2.5})
    assert measured.metrics["val/gold/reward"] == 2.5, "validated after its only step, whose row is that of step 0"


def test_older_runs_called_log_ratios_kl(tmp_path):
    """On the data's responses it was not a KL; for a method that samples, it was one and keeps its name."""
    csv = "step,train/kl/reference,train/kl/k3,train/kl/mismatched,val/kl/reference\n0,0,0,0,0\n1,-3,4,0.5,2\n"
    run = logged(tmp_path / "offline", csv, {"train/kl/reference": -3.0, "val/kl/reference": 2.0})
    ratios = {"train/log_ratio/mean": -3.0, "train/log_ratio/k3": 4.0, "train/log_ratio/mismatched": 0.5}
    assert run.metrics == ratios | {"val/kl/reference": 2.0}
    assert run.curves["train/log_ratio/mean"][1].tolist() == [0.0, -3.0]
    csv = "step,train/kl/reference,train/kl/token\n0,0,0\n1,3,0.1\n"
    sampled = logged(tmp_path / "online", csv, {"train/kl/reference": 3.0, "train/kl/token": 0.1})
    assert sampled.metrics == {"train/kl/reference": 3.0, "train/kl/token": 0.1}


def test_non_finite_rewards_are_left_out(tmp_path):
    folder = write_run(tmp_path / "a")
    chosen = np.array([1.0, np.nan, 2.0], dtype=np.float32)
    np.savez(folder / "implicit_rewards.npz", chosen=chosen, rejected=np.zeros(3, dtype=np.float32))
    kept = read_run(folder, "a").rewards
    assert [values.tolist() for values in kept] == [[1.0, 2.0], [0.0, 0.0]]


def test_samples_are_the_first_and_the_last(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "samples" / "step_00000100.jsonl").write_text("")
    with (folder / "samples" / "step_00000200.jsonl").open("a") as file:
        file.write('{"prompt": "cut sho')
    samples = read_run(folder, "a").samples
    assert {step: len(rows) for step, rows in samples.items()} == {0: 3, 200: 3}
