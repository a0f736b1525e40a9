"""metrics.csv: one row a step, kept by a resumed run; MLflow's database, made by one job at a time."""

from __future__ import annotations

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


def test_a_resumed_run_keeps_earlier_rows_and_takes_its_own_for_repeated_steps(tmp_path):
    write(tmp_path, (0, {"a": 0.0}), (1, {"a": 1.0}), (2, {"a": 2.0}))
    write(tmp_path, (1, {"a": 10.0, "b": 5.0}), (2, {"a": 20.0}))
    assert [(row["step"], row["a"], row["b"]) for row in read_metrics(tmp_path / "metrics.csv")] == [
        ("0", "0.0", ""),
        ("1", "10.0", "5.0"),
        ("2", "20.0", ""),
    ]


def test_a_line_cut_short_by_a_kill_does_not_stop_the_next_run(tmp_path):
    write(tmp_path, (0, {"a": 0.0, "b": 1.0}))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,2")
    write(tmp_path, (1, {"a": 3.0, "b": 4.0}))
    assert [row["a"] for row in read_metrics(tmp_path / "metrics.csv")] == ["0.0", "3.0"]


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
