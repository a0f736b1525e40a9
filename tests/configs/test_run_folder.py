"""One run, one configuration: what a folder refuses, what it lets change, and where a run can start from."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from omegaconf import OmegaConf

from rlhf_lightning import compose, train
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.folder import RunFolder, note, read_job
from rlhf_lightning.cli.results import Result
from tests.helpers.jobs import differences

#: What time and memory were, not what was computed.
CLOCKS = ("throughput", "memory", "time")
EXACT = ["scheduler=constant", "optimizer.lr=1e-2", "trainer.max_epochs=5", "callbacks.last.every_n_steps=100"]


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory) -> Path:
    """A folder with a data file and a run of two steps."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copy(pairs, root / "pairs.jsonl")
    train(compose("train", [*options_of(root), f"paths.output_dir={root / 'run'}"]))
    return root


@pytest.fixture
def root(finished, tmp_path) -> Path:
    """A copy of it, under the same path in no configuration: runs may be moved."""
    shutil.copytree(finished, tmp_path / "moved")
    return tmp_path / "moved"


def options_of(root: Path) -> list[str]:
    data = ["data=json", f"data.source.path={root / 'pairs.jsonl'}", "data.validation=0.3", "data.batch_size=2"]
    lean = ["callbacks.samples=null", "callbacks.export=null", "callbacks.best=null"]
    return ["model=tiny_random", "trainer=debug", *data, "data.spec.cache=false", *lean, *EXACT]


def command(root: Path, *more: str) -> list[str]:
    return [*options_of(root), f"paths.output_dir={root / 'run'}", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not any(word in name for word in CLOCKS)}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    "option",
    [
        "method=simpo",
        "method.loss.beta=0.5",
        "optimizer.lr=1e-3",
        "optimizer=sgd",
        "scheduler=cosine",
        "seed=7",
        "data.batch_size=4",
        "data.validation=0.4",
        "data.spec.template=tokenizer",
        "adapter=lora",
        "reference=cached",
        "trainer.precision=bf16-true",
        "callbacks=[default,ema]",
        "ckpt_path=elsewhere.ckpt",
    ],
)
def test_another_computation_is_refused(root, option):
    """Fails when a part of what is computed is nobody's business, as everything was."""
    if option == "optimizer=sgd":
        option = "optimizer._target_=torch.optim.NAdam"
    folder = RunFolder(compose("train", command(root, option), check=False))
    with pytest.raises(ConfigError, match="holds a run of another configuration") as caught:
        folder.check()
    assert option.partition("=")[0].split(".")[0].removesuffix("=") in str(caught.value)


@pytest.mark.parametrize(
    "option",
    ["trainer.max_steps=9", "logger=none", "callbacks.samples.prompts=3", "data.loading.num_workers=1", "strategy=ddp"],
)
def test_what_may_change_is_accepted_and_named(root, option):
    option = "callbacks.progress=null" if "samples" in option else option
    folder = RunFolder(compose("train", command(root, option), check=False))
    folder.check()
    changed = {difference.key for difference in folder.changed} - {"data.source.path"}
    assert changed
    assert {key.split(".")[0] for key in changed} == {option.partition("=")[0].split(".")[0]}


def test_a_refused_command_leaves_everything_as_it_was(root, rlhf):
    """Result, configuration, log and Hydra's record, which showed the command that was refused."""
    assert rlhf("train", *command(root, "trainer.max_steps=3"))[0] == 0
    before = contents(root / "run")
    code, _, err = rlhf("train", *command(root, "method=simpo", "optimizer.lr=1e-3", "trainer.max_steps=4"))
    assert code == 2
    assert "(method: dpo -> simpo, " in err
    assert "optimizer.lr: 0.01 -> 0.001" in err
    assert contents(root / "run") == before


def test_data_that_was_edited_under_the_same_name(root, rlhf):
    """Same lengths, same path, another row; found before any weight is loaded."""
    file = root / "pairs.jsonl"
    file.write_text(file.read_text().replace("I think it is 33.", "I think it is 44."))
    before = contents(root / "run") | {"train.log": b"", ".lock": b"", "error.log": b""}
    code, _, err = rlhf("train", *command(root, "trainer.max_steps=4"))
    assert code == 2
    assert "data changed since this run was begun" in err
    left = contents(root / "run")
    assert {name: left[name] for name in ("config.yaml", "result.json", "metrics.csv", "checkpoints/last.ckpt")} == {
        name: before[name] for name in ("config.yaml", "result.json", "metrics.csv", "checkpoints/last.ckpt")
    }


def test_a_longer_run_is_the_longer_run(root):
    """Rows, rates, metrics and weights; ``config.yaml`` and ``job.json`` record what was done."""
    for length in (3, 4, 7):  # of three steps an epoch
        train(compose("train", command(root, f"trainer.max_steps={length}")))
    whole = [o if not o.startswith("paths") else f"paths.output_dir={root / 'whole'}" for o in command(root)]
    train(compose("train", [*whole, "trainer.max_steps=7"]))
    assert metrics(root / "run") == metrics(root / "whole")
    one, other = state(root / "run"), state(root / "whole")
    assert differences(one["state_dict"], other["state_dict"]) == []
    assert differences(one["optimizer_states"], other["optimizer_states"]) == []
    assert OmegaConf.load(root / "run" / "config.yaml").trainer.max_steps == 7
    resumed = read_job(root / "run")["resumed"]
    assert [entry["step"] for entry in resumed] == [2, 3, 4]
    assert "trainer.max_steps: 2 -> 3" in resumed[0]["changed"]


def test_the_same_command_once_more_changes_nothing(root, rlhf):
    """Not a byte of result, configuration, metrics, logs and records, whatever metric is asked for now."""
    code, out, _ = rlhf("train", *command(root, "trainer.max_steps=3"))
    assert code == 0
    assert "What the run changed" in out
    before = contents(root / "run")
    assert len(before) > 8
    for options in ([], ["optimized_metric=train/loss"]):
        code, out, err = rlhf("train", *command(root, "trainer.max_steps=3", *options))
        assert (code, out) == (0, "")
        assert "nothing was left to do after step 3" in " ".join(err.split())
        assert contents(root / "run") == before


def test_a_finished_run_without_its_checkpoint_is_not_trained_again(root):
    """It was: its metrics and result were replaced by those of another run from the start."""
    (root / "run" / "checkpoints" / "last.ckpt").unlink()
    before = contents(root / "run")
    assert train(compose("train", command(root, "optimized_metric=train/loss"))) == pytest.approx(
        Result.read(root / "run").metrics["train/loss"]
    )
    after = contents(root / "run")
    assert {name for name in before if after[name] != before[name]} <= {"job.json"}


def test_a_run_does_not_become_shorter(root):
    with pytest.raises(ConfigError, match=r"trainer\.max_steps=1, and this run has taken 2 steps"):
        train(compose("train", command(root, "trainer.max_steps=1")))
    assert OmegaConf.load(root / "run" / "config.yaml").trainer.max_steps == 2


@pytest.mark.parametrize("option", ["rerun=true", "ckpt_path=null"])
def test_from_scratch_replaces_the_run(root, option):
    (root / "run" / "checkpoints" / "best-step=2.ckpt").write_bytes(b"of the run that was here")
    train(compose("train", command(root, option, "method=ipo", "trainer.max_steps=1")))
    assert [path.name for path in (root / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert state(root / "run")["global_step"] == 1
    assert [row["step"] for row in metrics(root / "run")] == ["0"]
    assert "ipo" in OmegaConf.load(root / "run" / "config.yaml").method.loss._target_
    assert "resumed" not in read_job(root / "run")


def test_a_first_start_that_was_interrupted_binds_nobody(root):
    """A folder with a configuration and nothing of a run."""
    shutil.rmtree(root / "run" / "checkpoints")
    (root / "run" / "result.json").unlink()
    train(compose("train", command(root, "method=ipo", "trainer.max_steps=1")))
    assert Result.read(root / "run").steps == 1
    assert "ipo" in OmegaConf.load(root / "run" / "config.yaml").method.loss._target_


def test_a_folder_of_an_earlier_version(root):
    """Without ``job.json`` only its configuration is compared."""
    (root / "run" / "job.json").unlink()
    with pytest.raises(ConfigError, match=r"seed: 42 -> 7"):
        train(compose("train", command(root, "seed=7")))
    train(compose("train", command(root, "trainer.max_steps=3")))
    assert Result.read(root / "run").steps == 3


def test_two_processes_do_not_share_a_folder(root, rlhf):
    lock = FileLock(root / "run" / ".lock")
    with lock:
        note(root / "run", process={"pid": 4711, "host": "elsewhere"})
        before = contents(root / "run")
        code, _, err = rlhf("train", *command(root, "trainer.max_steps=3"))
        assert code == 2
        assert f"process 4711 on elsewhere is running in {root / 'run'}" in err
        assert contents(root / "run") == before
    assert rlhf("train", *command(root, "trainer.max_steps=3"))[0] == 0
    assert "process" not in read_job(root / "run")


def test_an_evaluation_does_not_move_into_a_run(root, rlhf):
    """It would replace the configuration of what was trained."""
    before = contents(root / "run")
    code, _, err = rlhf("evaluate", f"run={root / 'run'}", f"paths.output_dir={root / 'run'}")
    assert code == 2
    assert "holds a training run: choose another folder for rlhf evaluate" in err
    after = contents(root / "run")
    assert {name: after[name] for name in before if name != "job.json"} == {
        name: text for name, text in before.items() if name != "job.json"
    }


def test_a_run_starts_from_the_weights_of_another(root):
    """Weights only: its own rate, schedule, steps and data; the reference is where it starts."""
    checkpoint = root / "run" / "checkpoints" / "last.ckpt"
    new = [o for o in command(root) if not o.startswith("paths")] + [f"paths.output_dir={root / 'new'}"]
    given = [*new, f"ckpt_path={checkpoint}", "optimizer.lr=1e-3", "seed=5"]
    train(compose("train", [*given, "trainer.max_steps=1"]))
    first = metrics(root / "new")[0]
    assert (first["step"], float(first["train/lr"])) == ("0", pytest.approx(1e-3))
    assert float(first["train/loss"]) == pytest.approx(0.6931, abs=1e-4), "the reference is not where it starts"
    moved = [
        (state(root / "new")["state_dict"][name] - weight).abs().max()
        for name, weight in state(root / "run")["state_dict"].items()
    ]
    assert 0 < max(moved) < 2e-3, "one step of Adam moves a weight by about its rate"
    train(compose("train", [*given, "trainer.max_steps=2"]))  # the same command resumes its own run
    assert [row["step"] for row in metrics(root / "new")] == ["0", "1"]
    with pytest.raises(ConfigError, match=r"ckpt_path: .*last\.ckpt -> none"):
        train(compose("train", [*new, "optimizer.lr=1e-3", "seed=5", "trainer.max_steps=3"]))


def test_an_adapter_to_start_from_is_part_of_the_reference(root):
    """With ``reference=auto``: switched off it would not be where the run starts."""
    lora = ["adapter=lora", "callbacks.last.every_n_steps=1", "trainer.max_steps=1", "optimizer.lr=0.05"]
    others = [o for o in command(root) if not o.startswith(("paths", "optimizer"))]
    train(compose("train", [*others, *lora, f"paths.output_dir={root / 'first'}"]))
    start = f"ckpt_path={root / 'first' / 'checkpoints' / 'last.ckpt'}"
    train(compose("train", [*others, *lora, f"paths.output_dir={root / 'second'}", start]))
    assert float(metrics(root / "second")[0]["train/loss"]) == pytest.approx(0.6931, abs=1e-4)
    assert float(metrics(root / "second")[0]["val/loss"]) != pytest.approx(0.6931, abs=1e-4)


def test_weights_to_start_from_that_changed_since(root):
    """A resume would take another reference."""
    checkpoint = shutil.copy(root / "run" / "checkpoints" / "last.ckpt", root / "start.ckpt")
    new = [o for o in command(root) if not o.startswith("paths")] + [f"paths.output_dir={root / 'new'}"]
    train(compose("train", [*new, f"ckpt_path={checkpoint}", "trainer.max_steps=1"]))
    saved = state(root / "run")
    saved["state_dict"] = {name: 2 * weight for name, weight in saved["state_dict"].items()}
    torch.save(saved, checkpoint)
    with pytest.raises(ConfigError, match="ckpt_path changed since this run was begun"):
        train(compose("train", [*new, f"ckpt_path={checkpoint}", "trainer.max_steps=2"]))


def test_checkpoints_elsewhere_bind_as_well(root):
    """A run whose ``last.ckpt`` lies outside its folder, killed before it had a result."""
    elsewhere = root / "elsewhere"
    shutil.move(root / "run" / "checkpoints", elsewhere)
    (root / "run" / "result.json").unlink()
    more = [f"callbacks.last.dirpath={elsewhere}", "seed=7"]
    with pytest.raises(ConfigError, match=r"seed: 42 -> 7"):
        RunFolder(compose("train", command(root, *more), check=False)).check()


def test_a_trial_run_binds_nobody(root):
    """``trainer=smoke`` leaves a result and nothing that could be resumed."""
    shutil.rmtree(root / "run" / "checkpoints")
    cfg = OmegaConf.load(root / "run" / "config.yaml")
    cfg.trainer.fast_dev_run = True
    OmegaConf.save(cfg, root / "run" / "config.yaml")
    RunFolder(compose("train", command(root, "seed=7"), check=False)).check()


def test_job_files_name_the_run(root):
    job = read_job(root / "run")
    assert job["command"] == "train"
    assert set(job["content"]) == {"the training data", "the validation data"}
    assert json.loads((root / "run" / "job.json").read_text())["digest"]
