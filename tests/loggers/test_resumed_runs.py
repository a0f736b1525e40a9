"""A job that was killed and resumed is one record in every logger: each metric once a step, and the options."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rlhf_lightning.loggers import read_metrics
from rlhf_lightning.loggers.wandb_run import records
from tests.helpers import faults

#: With validations and sample tables; the kill comes steps and a validation after the last checkpoint.
RUN = ["method=dpo", "callbacks.last.every_n_steps=4"]
#: Lightning logs it with the metrics of a step and with those of a validation after it.
APART = ("step", "epoch")
KILL = faults.Fault(point="metrics", at=21)


def killed_and_resumed(folder: Path, monkeypatch, *options: str) -> Path:
    monkeypatch.setitem(faults.METHODS, "logged", [*RUN, *options])
    assert faults.command(folder, "logged", KILL) == -9, faults.printed(folder)
    assert faults.command(folder, "logged") == 0, faults.printed(folder)
    return folder


def expected(folder: Path) -> Counter[tuple[str, int]]:
    """Every metric of every step, once, as the CSV file has it (which tests/cli/test_loggers.py holds to be right)."""
    cells = Counter(
        (name, int(float(row["step"])))
        for row in read_metrics(folder / "metrics.csv")
        for name, value in row.items()
        if name not in APART and value
    )
    assert {name.split("/")[0] for name, _ in cells} >= {"train", "val"}
    assert set(cells.values()) == {1}
    return cells


def run_id(folder: Path) -> str:
    return json.loads((folder / "job.json").read_text())["id"]


def test_tensorboard_shows_every_step_once(tmp_path, monkeypatch):
    folder = killed_and_resumed(tmp_path / "run", monkeypatch, "logger=tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list((folder / "tensorboard").glob("events.*"))) >= 2, "nothing was resumed"
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    metrics = set(events.Tags()["scalars"]) - {*APART}
    shown = Counter((tag, event.step) for tag in metrics for event in events.Scalars(tag))
    assert shown == expected(folder)
    tables = [event.step for event in events.Tensors("samples/text_summary")]
    assert tables == sorted(int(file.stem.split("_")[1]) for file in (folder / "samples").glob("step_*.jsonl"))
    hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"method.loss.beta" in hparams
    assert b"optimizer.lr" in hparams


@pytest.mark.slow
def test_mlflow_has_one_run_with_every_step_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    folder = killed_and_resumed(tmp_path / "run", monkeypatch, "logger=mlflow", f"paths.runs={tmp_path}/runs")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("rlhf-lightning").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["rlhf.run_id"] == run_id(folder)
    assert run.data.params["method.loss.beta"] == "0.1"
    history = Counter(
        (name, metric.step)
        for name in run.data.metrics.keys() - {*APART}
        for metric in client.get_metric_history(run.info.run_id, name)
    )
    assert history == expected(folder)


@pytest.mark.slow
def test_wandb_has_one_run_with_every_step_once(tmp_path, monkeypatch):
    """Offline: without a network, both parts have one id, with which ``wandb sync`` uploads them as one run."""
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto.wandb_internal_pb2 import Record

    options = ["logger=wandb", "logger.wandb.offline=true"]
    folder = killed_and_resumed(tmp_path / "run", monkeypatch, *options)
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2, wandb.__version__
    assert {file.stem for file in files} == {f"run-{run_id(folder)}"}
    written = [Record.FromString(data) for file in files for data in records(file.read_bytes())]
    history: Counter[tuple[str, int]] = Counter()
    for record in written:
        items = {(list(item.nested_key) or [item.key])[0]: item.value_json for item in record.history.item}
        if "trainer/global_step" in items:
            names = items.keys() - {*APART, "trainer/global_step", "_step", "_runtime", "_timestamp"}
            history.update((name, int(items["trainer/global_step"])) for name in names)
    tables = Counter({(name, step): count for (name, step), count in history.items() if name == "samples"})
    assert history - tables == expected(folder)
    assert tables == Counter(("samples", int(file.stem.split("_")[1])) for file in folder.glob("samples/step_*.jsonl"))
    updates = [update for record in written for update in (*record.run.config.update, *record.config.update)]
    params = {update.key: update.value_json for update in updates}
    assert params["method.loss.beta"] == "0.1"


@pytest.mark.slow
def test_a_run_from_scratch_is_another_one(tmp_path, monkeypatch):
    """It has a new id, and nothing of the run before in its event files."""
    monkeypatch.setitem(faults.METHODS, "logged", [*RUN, "logger=tensorboard", "trainer.max_steps=2", "rerun=true"])
    folder, ids, files = tmp_path / "run", [], []
    for _ in range(2):
        assert faults.command(folder, "logged") == 0, faults.printed(folder)
        ids.append(run_id(folder))
        files.append({file.name for file in (folder / "tensorboard").glob("events.*")})
    assert ids[0] != ids[1]
    assert not files[0] & files[1]
