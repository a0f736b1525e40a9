"""Commands that are given the files of somebody else: folders of config groups, and folders of runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

GADGET = {"()": "lightning.pytorch.cli.instantiate_class", "init": {"class_path": "os.system"}}
TARGET = {"_target_": "lightning.pytorch.cli.instantiate_class", "init": {"class_path": "os.system"}}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def groups(tmp_path: Path, canary: Path) -> Path:
    """``experiment=evil`` logs with a shell command, ``experiment=hidden`` has it as a value of the sweep."""
    handler = GADGET | {"args": f"touch {canary}"}
    logging = {"version": 1, "handlers": {"a": handler}, "root": {"handlers": ["a"]}}
    hidden = {"mode": "MULTIRUN", "sweeper": {"params": {"experiment": "evil"}}}
    folder = tmp_path / "groups"
    (folder / "experiment").mkdir(parents=True)
    for name, settings in (("evil", {"job_logging": logging, "hydra_logging": logging}), ("hidden", hidden)):
        text = "# @package _global_\n" + yaml.safe_dump({"hydra": settings})
        (folder / "experiment" / f"{name}.yaml").write_text(text)
    (folder / "sweep").mkdir()
    shutil.move(folder / "experiment" / "hidden.yaml", folder / "sweep" / "hidden.yaml")
    return folder


@pytest.mark.parametrize(
    "chosen",
    [
        ["experiment=evil"],
        ["-m", "experiment=evil", "seed=1,2"],
        ["-m", "experiment=glob(e*)"],
        ["-m", "sweep=hidden"],
        ["--info=config", "experiment=evil"],
    ],
    ids=" ".join,
)
def test_a_folder_of_groups_runs_nothing(rlhf: Any, groups: Path, canary: Path, chosen: list[str]):
    code, _, err = rlhf("train", "--config-dir", str(groups), *chosen)
    assert code == 2, err
    assert "instantiate_class is not a handler" in err
    assert not canary.exists()


def test_the_file_that_a_command_is_is_not_replaced(rlhf: Any, groups: Path):
    code, _, err = rlhf("train", "--config-dir", str(groups), "--config-name", "evil")
    assert (code, "choose an experiment" in err) == (2, True)


@pytest.fixture
def run_folder(rlhf: Any, tiny: list[str], tmp_path: Path) -> Path:
    """A finished run whose configuration somebody has changed."""
    code, _, err = rlhf("train", *tiny, "trainer.max_steps=1", "paths.output_dir=run")
    assert code == 0, err
    return tmp_path / "run"


def rewritten(folder: Path, key: str, value: Any) -> None:
    file = folder / "config.yaml"
    cfg: dict[str, Any] = yaml.safe_load(file.read_text())
    node, parts = cfg, key.split(".")
    for part in parts[:-1]:
        node = node.setdefault(part, {}) or node
    node[parts[-1]] = value
    file.write_text(yaml.safe_dump(cfg))


def test_the_folder_of_a_run_is_data(rlhf: Any, run_folder: Path, canary: Path, tiny: list[str]):
    evil = TARGET | {"args": f"touch {canary}"}
    saved = (run_folder / "config.yaml").read_text()
    commands = {
        "model": ("generate", "run=run", "prompt=hello"),
        "data.spec.template_arguments": ("generate", "run=run", "prompt=hello"),
        "optimizer": ("evaluate", "run=run", "paths.output_dir=eval"),
        "method.loss": ("evaluate", "run=run", "paths.output_dir=eval"),
    }
    for key, command in commands.items():
        node = {"a": evil} if key.endswith("arguments") else evil
        rewritten(run_folder, "allow_targets", ["lightning"])
        rewritten(run_folder, key, node)
        code, _, err = rlhf(*command)
        assert code == 2, (key, err)
        assert "instantiate_class" in err, (key, err)
        (run_folder / "config.yaml").write_text(saved)
    rewritten(run_folder, "callbacks", {"a": evil})
    for command in (("report", "run"), ("train", *tiny, "trainer.max_steps=2", "paths.output_dir=run")):
        rlhf(*command)
    assert not canary.exists()


def test_text_of_a_run_is_no_interpolation(rlhf: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    rewritten(run_folder, "model.chat_template", "${oc.env:MY_SECRET}")
    _, out, err = rlhf("generate", "run=run", "prompt=hello")
    assert "hunter2" not in out + err


def test_a_bomb_in_the_folder_of_a_run_is_an_error(rlhf: Any, tmp_path: Path):
    levels = [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 9)}]" for n in range(9)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("\n".join(levels))
    for command in (("generate", "run=run"), ("evaluate", "run=run"), ("report", "run")):
        code, _, err = rlhf(*command)
        assert code == 2, err
        assert "its aliases stand for more than 100,000 values" in err
