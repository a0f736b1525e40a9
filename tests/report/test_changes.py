"""Changes made by a run, from its curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.report.changes import Point, changes_of
from rlhf_lightning.report.reading import read_run
from tests.helpers.synthetic_runs import write_run


def run_of(folder: Path, rows: list[dict[str, float]]):
    columns = sorted({name for row in rows for name in row} - {"step"})
    lines = [",".join(["step", *columns])]
    lines += [",".join(str(row.get(name, "")) for name in ["step", *columns]) for row in rows]
    write_run(folder)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return read_run(folder, "run")


def test_validation_metrics_are_not_averaged(tmp_path):
    run = run_of(tmp_path, [{"step": 0, "val/gold/reward": 0.5}, {"step": 20, "val/gold/reward": 2.0}])
    (change,) = changes_of(run)
    assert (change.first, change.last, change.averaged) == (Point(0, 0.5), Point(20, 2.0), False)
    assert change.difference == 1.5
    assert change.better is True


def test_steps_are_averaged_at_either_end(tmp_path):
    """Fails when a single noisy step stands for the beginning or the end."""
    run = run_of(tmp_path, [{"step": step, "train/loss": float(step)} for step in range(40)])
    (change,) = changes_of(run)
    assert change.averaged
    assert (change.first, change.last) == (Point(3, 1.5), Point(39, 37.5))  # means of four of forty
    assert change.better is False


@pytest.mark.parametrize(("validations", "shown"), [(2, ["val/loss"]), (1, ["val/loss", "train/loss"])])
def test_validation_metrics_replace_training_metrics_unless_there_was_one_validation(tmp_path, validations, shown):
    rows = [{"step": step, "train/loss": 1.0 / (step + 1)} for step in range(20)]
    for step in range(20 - validations, 20):
        rows[step]["val/loss"] = 0.5
    changes = changes_of(run_of(tmp_path, rows))
    assert [change.metric for change in changes] == shown
    if validations == 1:
        assert changes[0].cells() == ("val/loss", "", "0.5000", "")


def test_better_direction(tmp_path):
    """A divergence has no better direction, and an unchanged metric is not worse."""
    first = {"step": 0, "val/gold/kl": 0.0, "val/loss": 0.7, "val/reward/accuracy": 0.5, "val/gold/reward": 1.0}
    last = {"step": 9, "val/gold/kl": 3.0, "val/loss": 0.6, "val/reward/accuracy": 0.4, "val/gold/reward": 1.0}
    better = {change.metric: change.better for change in changes_of(run_of(tmp_path, [first, last]))}
    assert better == {"val/gold/kl": None, "val/loss": True, "val/reward/accuracy": False, "val/gold/reward": None}


def test_order_and_number_of_rows(tmp_path):
    run = read_run(write_run(tmp_path), "run")
    assert [change.metric for change in changes_of(run)][:3] == [
        "val/gold/reward",
        "val/reward/accuracy",
        "val/gold/kl",
    ]
    assert changes_of(run, ["val/loss"])[0].metric == "val/loss"
    assert {change.metric for change in changes_of(run, everything=True)} == set(run.curves)
    assert "train/grad_norm" not in {change.metric for change in changes_of(run)}


def test_a_run_without_curves(tmp_path):
    folder = write_run(tmp_path)
    (folder / "metrics.csv").unlink()
    assert changes_of(read_run(folder, "run")) == []
