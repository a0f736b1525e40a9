"""metrics.csv: one row a step, kept by a resumed run; MLflow's database, made by one job at a time."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.loggers import CSVLogger, read_metrics


def write(folder, *rows: tuple[int, dict[str, float]], finish: bool = True) -> None:
    logger = CSVLogger(str(folder))
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    if finish:
        logger.finalize("success")


def test_metrics_of_a_step_share_a_row_and_new_columns_are_added(tmp_path):
    write(tmp_path, (0, {"train/loss": 2.0}), (1, {"train/loss": 1.0}), (1, {"val/loss": 3.0}))
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss,val/loss", "0,2.0,", "1,1.0,3.0"]


#: What a run logs: a validation shares its step's row, columns come late, the last row is of two calls.
LOGGED = [
    (0, {"train/loss": 0.1 + 0.2}),
    (0, {"val/gold": 0.5}),
    (1, {"train/loss": 1.0}),
    (1, {"val/loss": 7.0}),
    (2, {"train/loss": 2.0, "train/lr": 1e-7}),
    (5, {"train/loss": float("nan")}),
    (5, {"val/loss": 8.0}),
]


@pytest.mark.parametrize("end", ["killed", "failed", "finished", "cut"])
@pytest.mark.parametrize("saved", range(len(LOGGED) + 1))
def test_a_run_resumed_from_any_checkpoint_ends_with_the_bytes_of_an_unbroken_one(tmp_path, saved, end):
    """Whatever was logged between the checkpoint and the end of the process, and in columns of its own."""
    write(tmp_path / "whole", *LOGGED)
    first, file = CSVLogger(str(tmp_path)), tmp_path / "metrics.csv"
    for step, metrics in LOGGED[:saved]:
        first.log_metrics(metrics, step)
    position = first.position()
    for step, metrics in [*LOGGED[saved:], *[(9, {"other": 1.0})] * (end != "finished")]:
        first.log_metrics(metrics, step)
    if end in ("failed", "finished"):
        first.finalize(end)
    if end == "cut":
        with file.open("a") as lines:
            lines.write("11,2")
    second = CSVLogger(str(tmp_path))
    second.rewind(position, step=0)
    for step, metrics in LOGGED[saved:]:
        second.log_metrics(metrics, step)
    second.finalize("success")
    assert file.read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_a_run_that_begins_replaces_the_file_of_an_earlier_one(tmp_path):
    """With its columns: rows of steps before the first logged one were kept as if it had resumed."""
    write(tmp_path, (0, {"a": 0.0}), (1, {"a": 1.0}))
    write(tmp_path, (4, {"b": 5.0}))
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,b", "4,5.0"]


def test_a_checkpoint_of_an_older_version_keeps_the_rows_of_its_steps(tmp_path, caplog):
    write(tmp_path, (0, {"a": 0.0}), (1, {"a": 1.0}), (2, {"a": 2.0}))
    logger = CSVLogger(str(tmp_path))
    with caplog.at_level(logging.INFO, "rlhf_lightning"):
        logger.rewind(None, step=2)
    logger.log_metrics({"a": 20.0, "b": 5.0}, 2)
    logger.finalize("success")
    assert "does not say where" in caplog.text
    rows = [(row["step"], row["a"], row["b"]) for row in read_metrics(tmp_path / "metrics.csv")]
    assert rows == [("0", "0.0", ""), ("1", "1.0", ""), ("2", "20.0", "5.0")]


def test_mlflow_writes_into_a_database():
    """MLflow 3 raises for a folder of files."""
    logger = compose("train", ["logger=mlflow", "paths.runs=/somewhere/runs"]).logger.mlflow
    assert logger.tracking_uri == "sqlite:////somewhere/runs/mlflow.db"
    assert logger.artifact_location == "/somewhere/runs/mlflow"


@pytest.mark.slow
def test_jobs_that_start_together_share_a_new_database(tmp_path):
    """MLflow's own migration of a new file fails in all but one of them."""
    sqlite3 = pytest.importorskip("sqlite3")
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    job = (
        "import sys; from rlhf_lightning.loggers import MLFlowLogger\n"
        "logger = MLFlowLogger(sys.argv[1])\n"
        "logger.log_metrics({'loss': 1.0}, 0); logger.finalize('success')"
    )
    command = [sys.executable, "-c", job, f"sqlite:///{tmp_path}/runs/mlflow.db"]
    jobs = [subprocess.Popen(command, cwd=tmp_path) for _ in range(3)]
    assert [process.wait() for process in jobs] == [0, 0, 0]
    with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (3,)
        assert database.execute("select count(*) from experiments where name = 'rlhf-lightning'").fetchone() == (1,)
