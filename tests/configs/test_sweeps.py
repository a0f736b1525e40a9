"""Sweeps: all jobs run, one that fails takes no other with it, and the table holds them all."""

from __future__ import annotations

import csv
import gc
import importlib.util
import os
import subprocess
import sys
import weakref

import pytest

from rlhf_lightning.cli import worker
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.sweep import gather, share_cores, varying
from rlhf_lightning.methods import AlignmentModule


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


@pytest.mark.slow
def test_a_failed_job_does_not_lose_the_others(rlhf, tiny, tmp_path):
    code, _, err = rlhf("train", "-m", "optimizer.lr=1e30,1e-3", *tiny, "paths.output_dir=sweep")
    assert code == 1
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["failed", "done"]
    assert "1 of 2 jobs failed: 0" in err
    assert Result.read(tmp_path / "sweep" / "0").error


@pytest.mark.slow
def test_a_job_leaves_no_model_in_memory(rlhf, tiny, tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Also one that failed; the garbage collector, which might come too late, is off."""
    modules: weakref.WeakSet[AlignmentModule] = weakref.WeakSet()
    alive: list[int] = []
    made, task = AlignmentModule.configure_model, worker._task

    def configured(module: AlignmentModule) -> None:
        modules.add(module)
        made(module)

    monkeypatch.setattr(AlignmentModule, "configure_model", configured)
    monkeypatch.setattr(worker, "_task", lambda name: lambda cfg: (alive.append(len(modules)), task(name)(cfg)))
    gc.collect()
    gc.disable()
    try:
        rlhf("train", "-m", "optimizer.lr=1e-3,1e30,1e-2", *tiny, "paths.output_dir=sweep")
    finally:
        gc.enable()
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["done", "failed", "done"]
    assert alive == [0, 0, 0]
    assert not modules


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


def test_parallel_jobs_share_the_cores(monkeypatch):
    """Fails when every job takes all cores (they would fight), or when the user's own setting is overwritten."""
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    share_cores(1)
    assert "OMP_NUM_THREADS" not in os.environ
    for jobs, threads in ((3, "2"), (-1, "1"), (-7, "4"), (99, "1")):
        share_cores(jobs)
        assert os.environ.pop("OMP_NUM_THREADS") == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    share_cores(2)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("5", "PASSIVE")


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(rlhf, tiny, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name.endswith("ray_launcher") else find_spec(name, *a)
    )
    code, _, err = rlhf("train", "-m", "hydra/launcher=ray", "seed=1,2", *tiny)
    assert code == 2
    assert "hydra-ray-launcher is not installed: pip install 'rlhf-lightning[ray]'" in err


OPTUNA = [
    "sweep=optuna",
    "optimized_metric=val/loss",
    "hydra.sweeper.direction=minimize",
    "hydra.sweeper.sampler.n_startup_trials=2",
    "hydra.sweeper.params={method.loss.beta: 'interval(0.05, 0.5)'}",
]


@pytest.mark.slow
def test_an_optimisation_resumes_with_the_values_reported_to_it(rlhf, tiny, tmp_path):
    """Killed after two of four trials: the other two are those of one that was never stopped."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    for trials in (2, 4):
        code, out, err = rlhf("train", *OPTUNA, f"hydra.sweeper.n_trials={trials}", *tiny)
        assert code == 0, err
    assert out.count("was done before") == 2
    (sweep,) = (tmp_path / "multirun").iterdir()
    assert rlhf("train", *OPTUNA, "hydra.sweeper.n_trials=4", *tiny, "paths.output_dir=w", "paths.sweeps=none")[0] == 0
    drawn = [[row["method.loss.beta"] for row in rows(folder)] for folder in (sweep, tmp_path / "w")]
    assert len(set(drawn[0])) == 4
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_a_failed_trial_does_not_end_an_optimisation(rlhf, tiny, tmp_path):
    """Fails when a job returns NaN: the sweeper then tells Optuna a value for a failed trial, which Optuna refuses."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    space = ["hydra.sweeper.params={optimizer.lr: 'choice(1e30, 1e-3)'}", "hydra.sweeper.n_trials=5"]
    code, _, _ = rlhf("train", *OPTUNA[:-1], *space, *tiny, "paths.output_dir=sweep")
    assert code == 1
    states = [row["status"] for row in rows(tmp_path / "sweep")]
    assert len(states) == 5
    assert set(states) == {"failed", "done"}


def test_an_optimisation_needs_a_metric(rlhf, tiny):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    code, _, err = rlhf("train", *OPTUNA, "optimized_metric=null", *tiny)
    assert code == 2
    assert "Optuna optimises optimized_metric, which is null: set it to" in err


@pytest.mark.parametrize("off", ["data.validation=null", "data.validation=0", "trainer.limit_val_batches=0"])
def test_a_metric_of_validations_needs_one(off, rlhf, tiny, tmp_path):
    """Every job would train to its end and then have no value; Optuna asks for the best of none."""
    code, _, err = rlhf("train", "optimized_metric=val/loss", *tiny, off, "paths.output_dir=run")
    assert code == 2
    assert f"optimized_metric=val/loss is logged in validations, and {off} leaves none: set it to" in " ".join(
        err.split()
    )
    assert not (tmp_path / "run").exists()


def test_an_optimisation_without_any_value_reports_why(rlhf, tiny, tmp_path):
    """A validation that the length of the run never reaches."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    late = ["trainer.check_val_every_n_epoch=9", "trainer.limit_val_batches=1.0", "hydra.sweeper.n_trials=2"]
    code, _, err = rlhf("train", *OPTUNA, *late, *tiny, "paths.output_dir=sweep")
    assert code == 2
    text = " ".join(err.split())
    assert (
        "none of the 2 jobs gave a value of val/loss to optimise; job 0: optimized_metric=val/loss is logged in" in text
    )
    assert "trainer.check_val_every_n_epoch so that one takes place" in text
    assert not list((tmp_path / "sweep").glob("*/metrics.csv"))
    assert "looks like a bug" not in text
