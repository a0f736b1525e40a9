"""A sweep that was killed resumes where it stopped, and what is finished is not computed again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlhf_lightning import compose
from rlhf_lightning.cli import jobs
from rlhf_lightning.cli.identity import digest
from rlhf_lightning.cli.results import Result
from tests.helpers.jobs import differences

BETAS = "method.loss.beta=0.1,0.2"


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Each test starts without the jobs that the process remembers."""
    monkeypatch.setattr(jobs, "_FOLDERS_BY_DIGEST", {})


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def written(folder: Path) -> int:
    return (folder / "result.json").stat().st_mtime_ns


def test_the_digest_is_of_what_is_computed(tiny):
    """Fails when a folder counts (nothing would be recognised) or when an option does not (everything would be)."""
    one = digest(compose("train", [*tiny, "paths.output_dir=a"]))
    assert one == digest(compose("train", [*tiny, "paths.output_dir=b", "paths.sweeps=c", "rerun=true"]))
    assert one == digest(compose("train", [*tiny[::-1], "callbacks.last.dirpath=${paths.output_dir}/checkpoints"]))
    assert one == digest(compose("train", [*tiny, "callbacks.rollout_files.keep=3"]))
    two = [digest(compose("train", [*tiny, "strategy=ddp", f"strategy.timeout={time}"])) for time in (60, 1800)]
    assert two[0] == two[1] != one
    others = ["seed=1", "method.loss.beta=0.11", "method=ipo", "data.spec.max_length=77", "trainer.max_steps=3"]
    assert one not in {digest(compose("train", [*tiny, other])) for other in others}


def test_the_same_command_runs_nothing_twice(rlhf, tiny, tmp_path):
    assert rlhf("train", "-m", BETAS, *tiny)[0] == 0
    (sweep,) = (tmp_path / "multirun").iterdir()
    before = [written(sweep / job) for job in "01"]
    code, out, _ = rlhf("train", "-m", BETAS, *tiny)
    assert code == 0
    assert [written(sweep / job) for job in "01"] == before
    assert f"this sweep was begun in multirun/{sweep.name}" in out
    assert out.count("was done before") == 2
    assert "2 of 2 jobs were done before" in out
    assert folders(tmp_path / "multirun") == [sweep.name]


@pytest.mark.slow
def test_rerun_runs_everything_from_scratch(rlhf, tiny, tmp_path):
    assert rlhf("train", "-m", BETAS, *tiny)[0] == 0
    code, out, _ = rlhf("train", "-m", BETAS, *tiny, "rerun=true")
    assert code == 0
    assert "done before" not in out
    assert len(folders(tmp_path / "multirun")) == 2


@pytest.mark.slow
def test_rerun_in_the_same_folder_keeps_what_is_there(rlhf, tiny, tmp_path):
    for extra in ([], ["rerun=true"]):
        assert rlhf("train", "-m", BETAS, *tiny, "paths.output_dir=sweep", *extra)[0] == 0
    assert folders(tmp_path / "sweep") == ["0", "0_1", "1", "1_1"]
    assert len({written(path) for path in (tmp_path / "sweep").iterdir() if path.is_dir()}) == 4


@pytest.mark.slow
def test_another_sweep_finds_the_jobs_of_an_earlier_one(rlhf, tiny, tmp_path):
    assert rlhf("train", "-m", BETAS, *tiny)[0] == 0
    (first,) = (tmp_path / "multirun").iterdir()
    code, out, _ = rlhf("train", "-m", "method.loss.beta=0.3,0.2", *tiny, "paths.output_dir=other")
    assert code == 0
    assert f"was done before in multirun/{first.name}/1" in out
    assert (tmp_path / "other" / "1").resolve() == first / "1"
    assert "1 of 2 jobs were done before" in out
    assert len((tmp_path / "other" / "multirun.csv").read_text().splitlines()) == 3
    assert Result.read(tmp_path / "other" / "0").metrics != Result.read(tmp_path / "other" / "1").metrics


@pytest.mark.slow
def test_one_computation_under_two_names_is_two_jobs(rlhf, tiny, tmp_path):
    """A comparison of methods would otherwise show the runs of one under the name of the other."""
    code, out, err = rlhf("train", "-m", "method=hinge,rso_hinge", *tiny)
    assert code == 0, err
    assert "done before" not in out
    assert "2 of 2 jobs were done before" in rlhf("train", "-m", "method=hinge,rso_hinge", *tiny)[1]


@pytest.mark.slow
def test_a_number_does_not_take_over_the_folder_of_another_configuration(rlhf, tiny, tmp_path):
    """Fails when job 0 of the second sweep resumes from job 0 of the first, which has the same number."""
    assert rlhf("train", "-m", BETAS, *tiny, "paths.output_dir=sweep")[0] == 0
    before = written(tmp_path / "sweep" / "0")
    assert rlhf("train", "-m", "method.loss.beta=0.2,0.3", *tiny, "paths.output_dir=sweep")[0] == 0
    assert written(tmp_path / "sweep" / "0") == before
    new = [path for path in (tmp_path / "sweep").iterdir() if path.name.startswith("1_")]
    assert len(new) == 1
    assert Result.read(new[0]).steps == 2, "it went on from another job's checkpoint"


@pytest.mark.slow
def test_a_failed_job_is_run_again(rlhf, tiny, tmp_path):
    assert rlhf("train", "-m", BETAS, *tiny)[0] == 0
    (sweep,) = (tmp_path / "multirun").iterdir()
    Result("failed", error="the disk was full").write(sweep / "1")
    shutil.rmtree(sweep / "1" / "checkpoints")
    code, out, _ = rlhf("train", "-m", BETAS, *tiny)
    assert (code, out.count("was done before")) == (0, 1)
    assert Result.read(sweep / "1").status == "done"


@pytest.mark.slow
def test_links_to_deleted_jobs_do_not_stop_a_sweep(rlhf, tiny, tmp_path):
    assert rlhf("train", "-m", BETAS, *tiny)[0] == 0
    assert rlhf("train", "-m", "method.loss.beta=0.2,0.1", *tiny, "paths.output_dir=other")[0] == 0
    shutil.rmtree(tmp_path / "multirun")
    jobs._FOLDERS_BY_DIGEST.clear()
    code, out, _ = rlhf("train", "-m", "method.loss.beta=0.2,0.1", *tiny, "paths.output_dir=other")
    assert (code, out.count("was done before")) == (0, 0)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_lightning.cli.main", "train", "-m", *options]


def waited_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 100
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.slow
def test_kill_in_the_second_job_resumes_it_from_its_checkpoint(tiny, tmp_path):
    """The finished job is left alone, the half-done one ends with the same bits as one that was never killed."""
    longer = ["trainer.max_steps=200", "trainer.max_epochs=200", "trainer.limit_val_batches=0"]
    options = [BETAS, *tiny, *longer, "callbacks.last.every_n_steps=5"]
    killed = subprocess.Popen(command(*options), cwd=tmp_path)
    waited_for(tmp_path / "multirun", killed)
    (sweep,) = (tmp_path / "multirun").iterdir()
    waited_for(sweep / "1" / "checkpoints" / "last.ckpt", killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL
    assert Result.read(sweep / "1") is None
    step = torch.load(sweep / "1" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 200
    before = written(sweep / "0")

    again = subprocess.run(command(*options), cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert written(sweep / "0") == before
    assert "1 of 2 jobs were done before" in again.stdout
    assert "resume" in (sweep / "1" / "train.log").read_text()
    assert [Result.read(sweep / job).steps for job in "01"] == [200, 200]

    whole = subprocess.run(command(*options, "paths.output_dir=whole", "paths.sweeps=none"), cwd=tmp_path, timeout=200)
    assert whole.returncode == 0
    ends = [
        torch.load(root / "1" / "checkpoints" / "last.ckpt", weights_only=True) for root in (sweep, tmp_path / "whole")
    ]
    assert differences(ends[0]["state_dict"], ends[1]["state_dict"]) == []
    assert differences(ends[0]["optimizer_states"], ends[1]["optimizer_states"]) == []


@pytest.mark.slow
def test_two_sweeps_at_the_same_moment_share_the_jobs(tiny, tmp_path):
    """Each job is run once: the other process waits for it, or finds it."""
    options = [BETAS, *tiny, "paths.output_dir=sweep"]
    running = [subprocess.Popen(command(*options), cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(text.count("was done before") for text in outputs) == 2
    assert folders(tmp_path / "sweep") == ["0", "1"]


def test_job_files_are_whole_or_absent(tmp_path):
    (tmp_path / "job.json").write_text('{"dig')
    assert jobs._digest_of(tmp_path) is None
    (tmp_path / "job.json").write_text(json.dumps({"digest": "0" * 32, "overrides": []}))
    assert jobs._digest_of(tmp_path) == "0" * 32
    assert os.listdir(tmp_path) == ["job.json"]
