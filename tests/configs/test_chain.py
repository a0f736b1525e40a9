"""``rlhf chain``: which stages run, are resumed, run again and are shared, and what is refused before the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.cli import stages
from rlhf_lightning.cli.chain_record import CHAIN
from rlhf_lightning.cli.results import Result

YAML = """\
# @package _global_
chain:
  shared: [model=tiny_random, trainer=debug, data=smollm2_pairs, "callbacks=[last,export]"]
  stages:
    sft: [method=sft]
    reward: [method=bradley_terry, "model=run", "model.run=${stage:sft}"]
    dpo: [method=dpo, "model=run", "model.run=${stage:sft}", "method.loss.beta=${stage:reward.metrics.val/loss}"]
  sizes:
    small: {stages: {dpo: [trainer.max_steps=1]}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A folder with an experiment of three stages."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "three.yaml").write_text(YAML)
    return tmp_path / "conf"


@pytest.fixture
def ran(rlhf, recipe, monkeypatch):
    """Run the chain; jobs take no time and leave what jobs leave. Returns the exit code, the stages run, all text."""
    begun: list[str] = []

    def run(*options: str, failing: str | None = None) -> tuple[int, list[str], str]:
        def start(arguments):
            (option,) = [argument for argument in arguments if argument.startswith("paths.output_dir=")]
            folder = Path(option.partition("=")[2].strip('"'))
            begun.append(folder.parent.name)
            if begun[-1] == failing:
                return 143
            (folder / "export/last").mkdir(parents=True)
            (folder / "export/last/config.json").write_text("{}")
            Result("done", metrics={"val/loss": 0.25}, seconds=2.0).write(folder)
            return 0

        monkeypatch.setattr(stages, "launch", start)
        begun.clear()
        code, out, err = rlhf("chain", "--config-dir", str(recipe), "experiment=three", "paths.output_dir=c", *options)
        return code, list(begun), " ".join((out + err).split())

    return run


def record(tmp_path: Path) -> list[dict[str, dict[str, object]]]:
    """Stages of each chain by name, as they were recorded."""
    chains = json.loads((tmp_path / "c" / CHAIN).read_text())["chains"]
    return [{stage["name"]: stage for stage in chain["stages"]} for chain in chains]


def test_a_stopped_chain_resumes_at_the_stage_that_stopped(ran, tmp_path):
    code, begun, text = ran(failing="reward")
    assert (code, begun) == (143, ["sft", "reward"]), text
    assert "the chain ended in stage reward (exit code 143); the same command resumes there" in text
    code, begun, text = ran()
    assert (code, begun) == (0, ["reward", "dpo"]), text
    assert "stage sft was done before in c/sft/" in text
    assert (tmp_path / "c/report/report.html").is_file()
    code, begun, text = ran()
    assert (code, begun) == (0, []), text
    dpo = record(tmp_path)[0]["dpo"]
    assert "method.loss.beta=0.25" in dpo["options"]  # the metric of the stage before
    assert f"model.run={tmp_path / 'c' / dpo['needs']['sft']}" in dpo["options"]


def test_a_changed_stage_runs_again_with_those_behind_it_and_says_why(ran, tmp_path):
    ran()
    before = record(tmp_path)[0]
    code, begun, text = ran("reward.optimizer.lr=0.125")
    assert (code, begun) == (0, ["reward"]), text  # what dpo takes of it is a number, which is the same
    assert f"it differs from {before['reward']['folder'].split('/')[1]}: optimizer.lr: 1e-06 -> 0.125" in text
    code, begun, text = ran("sft.seed=7")
    assert (code, begun) == (0, ["sft", "reward", "dpo"]), text
    assert "model.run: <chain>/sft/" in text
    assert ran()[1] == []  # the first one is still there
    assert record(tmp_path)[0] == before
    assert ran("size=small")[1] == ["dpo"]


def test_a_sweep_over_a_late_stage_shares_the_early_ones(ran, tmp_path):
    code, begun, text = ran("-m", "dpo.optimizer.lr=1e-4,1e-3,1e-2")
    assert (code, begun) == (0, ["sft", "reward", "dpo", "dpo", "dpo"]), text
    chains = record(tmp_path)
    assert len({chain["sft"]["folder"] for chain in chains}) == 1
    assert len({chain["dpo"]["folder"] for chain in chains}) == 3


@pytest.mark.slow
def test_changed_data_of_the_same_name_is_other_data(ran, pairs, tmp_path):
    (file := tmp_path / "pairs.jsonl").write_text(pairs.read_text())
    options = ["data=json", f"data.source.path={file}", "data.validation=0.3"]
    assert ran(*options)[1] == ["sft", "reward", "dpo"]
    assert ran(*options)[1] == []
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    code, begun, text = ran(*options)
    assert (code, begun) == (0, ["sft", "reward", "dpo"]), text
    assert "content.data.source.path" in text


@pytest.mark.slow
def test_an_export_that_was_removed_is_missed_before_its_stage(ran, tmp_path):
    ran(failing="dpo")
    (config,) = tmp_path.glob("c/sft/*/export/last/config.json")
    config.unlink()
    config.parent.rmdir()
    code, begun, text = ran()
    assert (code, begun) == (2, []), text
    assert "model.run=${stage:sft}: stage sft was done, and there is no" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dpo.model.run=${stage:stf}"], "chain.stages.dpo: model.run=${stage:stf} refers to a stage 'stf'"),
        (["sft.model.run=${stage:dpo}"], "needs itself: sft -> dpo -> sft"),
        (["sft.callbacks=[last]"], "stage reward: model.run=${stage:sft}: stage sft leaves no export"),
        (["dpo.optimizer.lrr=1"], "stage dpo: optimizer.lrr: AdamW has no option 'lrr'"),
        (["size=smal"], "size=smal: the chain has no such size. Did you mean size=small?"),
        (["dpo.optimizer.lr=1e-4,1e-3"], "add -m to run a chain for each"),
        (["--cfg", "job"], "rlhf chain has no flag --cfg"),
    ],
)
def test_refused_before_the_first_stage(ran, options, message):
    code, begun, text = ran(*options)
    assert (code, begun) == (2, []), text
    assert message in text


def test_a_yaml_cannot_speak_for_the_command_line(ran, recipe):
    """As in games, whose tests have more such options."""
    (recipe / "experiment" / "three.yaml").write_text(
        YAML.replace("trainer.max_steps=1", "'rollout.environment={A: b}'")
    )
    code, begun, text = ran("size=small")
    assert (code, begun) == (2, []), text
    assert "chain.stages.dpo: " in text
    assert "counts only on the command line" in text


def test_a_chain_is_no_job(rlhf):
    code, _, err = rlhf("train", "experiment=zephyr")
    assert code == 2
    assert "rlhf chain experiment=" in err
    code, _, err = rlhf("chain")
    assert code == 2
    assert "choose a chain with experiment=..., one of" in err
