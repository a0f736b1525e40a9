"""Options under their old names count for one version: on the command line, in a yaml, in the folder of a run."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.annotations import annotations_of
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.folder import RunFolder, note, write_config
from rlhf_lightning.cli.renamed import MOVED as MOVED_TARGETS
from rlhf_lightning.cli.runs import evaluated, read_config
from rlhf_lightning.cli.targets import locate
from rlhf_lightning.renamed import ARGUMENTS

BASE = ["method=ppo", "model=tiny_random", "data=tiny", "reward=none"]
NEW = ["method.value_loss.clip=0.7", "method.credit.shaping.clip=3.0", "method.policy_loss.target_kl=0.5"]
OLD = ["method.value_clip=0.7", "method.shaping.clip=3.0", "method.target_kl=0.5"]
MOVED = {"value_clip": 0.7, "shaping": {"clip": 3.0}, "target_kl": 0.5}


@pytest.fixture(scope="module")
def new() -> DictConfig:
    return compose("train", [*BASE, *NEW])


def test_on_the_command_line_they_are_the_new_ones(new: DictConfig):
    with pytest.warns(FutureWarning) as warned:
        old = compose("train", [*BASE, *OLD])
    assert old == new
    messages = [str(warning.message) for warning in warned if warning.category is FutureWarning]
    assert "method.value_clip is now method.value_loss.clip; the old name counts in this version only" in messages
    assert len(messages) == len(OLD)


def test_a_command_prints_one_line_of_each():
    """Without the code that gave the warning, which is nothing to whoever typed the option."""
    options = ["experiment=tiny", "method=dpo", "data.num_workers=0"]
    command = [sys.executable, "-m", "rlhf_lightning.cli.main", "train", "--cfg", "job", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "warning: data.num_workers is now data.loading.num_workers; the old name counts in this version only"
    ]


def test_new_names_warn_of_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        compose("train", [*BASE, *NEW])
    assert [str(warning.message) for warning in caught if "is now" in str(warning.message)] == []


def test_in_a_yaml_of_the_users(new: DictConfig, tmp_path: Path):
    """A method that starts from ours, options of a mapping one by one."""
    (tmp_path / "method").mkdir()
    text = OmegaConf.to_yaml({"defaults": ["ppo", "_self_"], **MOVED})
    (tmp_path / "method" / "ppo_of_a_user.yaml").write_text(text)
    with pytest.warns(FutureWarning, match=r"method\.shaping is now method\.credit\.shaping"):
        old = compose("train", ["method=ppo_of_a_user", *BASE[1:]], config_dirs=[tmp_path])
    assert old == new


def old_folder(cfg: DictConfig, folder: Path) -> Path:
    """The folder of a run whose configuration was written before the options had their new names."""
    cfg = cfg.copy()
    cfg.paths.output_dir = str(folder)
    tree: Any = OmegaConf.to_container(cfg)
    method = tree["method"]
    method["value_clip"] = method["value_loss"].pop("clip")
    method["shaping"] = method["credit"].pop("shaping")
    method |= {f"critic_{name}": method["value_loss"].pop(f"critic_{name}") for name in ("lr", "warmup")}
    method["value_coef"] = method.pop("value_loss")["coef"]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    write_config(OmegaConf.create(tree), folder)
    note(folder, command="train")
    return folder


def test_a_run_that_has_them_is_resumed(new: DictConfig, tmp_path: Path):
    folder = old_folder(new, tmp_path / "run")
    cfg = compose("train", [*BASE, *NEW, f"paths.output_dir={folder}"])
    run = RunFolder(cfg)
    run.check()
    assert run.occupied
    assert run.changed == []
    cfg.method.value_loss.clip = 0.1
    with pytest.raises(ConfigError, match=r"method\.value_loss\.clip: 0\.7 -> 0\.1"):
        RunFolder(cfg).check()


@pytest.mark.filterwarnings("error::FutureWarning:rlhf_lightning")
def test_a_run_that_has_them_is_evaluated(new: DictConfig, tmp_path: Path):
    """Its own old names are no news to whoever evaluates it; those of the command are moved too."""
    folder = old_folder(new, tmp_path / "run")
    run = read_config(folder)
    assert run.method == new.method
    overrides = [f"run={folder}"]
    assert evaluated(compose("evaluate", overrides, check=False), run, overrides).method == new.method


def test_an_old_name_beside_a_run(new: DictConfig, tmp_path: Path):
    folder = old_folder(new, tmp_path / "run")
    overrides = [f"run={folder}", "method.value_clip=0.25"]
    with pytest.warns(FutureWarning, match="method.value_clip is now"):
        cfg = evaluated(compose("evaluate", overrides, check=False), read_config(folder), overrides)
    assert cfg.method.value_loss.clip == 0.25
    assert "value_clip" not in cfg.method


def test_a_moved_target_is_the_present_one(new: DictConfig, tmp_path: Path):
    """On the command line, with a warning, and in the folder of a run, which is resumed."""
    earlier = "rlhf_lightning.models.critic.ActorCritic"
    with pytest.warns(FutureWarning, match=rf"{re.escape(earlier)} is now rlhf_lightning\.models\.ActorCritic"):
        assert compose("train", [*BASE, *NEW, f"method.critic._target_={earlier}"]) == new
    tree = new.copy()
    tree.method.critic._target_ = earlier
    folder = old_folder(tree, tmp_path / "run")
    assert earlier in (folder / "config.yaml").read_text()
    run = RunFolder(compose("train", [*BASE, *NEW, f"paths.output_dir={folder}"]))
    run.check()
    assert run.occupied
    assert run.changed == []


@pytest.mark.parametrize("earlier", MOVED_TARGETS)
def test_a_moved_target_is_public_and_gone_from_its_module(earlier: str):
    assert MOVED_TARGETS[earlier] == f"rlhf_lightning.models.{locate(MOVED_TARGETS[earlier]).__name__}"
    with pytest.raises(ImportError):
        locate(earlier)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.value_clip=0.7", "method.value_loss.clip=0.3"],
            r"method\.value_clip=0\.7 and method\.value_loss\.clip=0\.3",
        ),
        (["method.value_loss={clip: 0.3}", "method.value_clip=0.7"], r"Leave method\.value_clip out"),
        (["method.shaping.clip=3.0", "method.credit.shaping.clip=2.0"], r"method\.credit\.shaping\.clip=2\.0"),
    ],
)
def test_both_names_are_refused(overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        compose("train", [*BASE, *overrides])


def test_an_old_name_beside_other_options_of_its_new_group():
    with pytest.warns(FutureWarning, match="method.value_clip is now"):
        cfg = compose("train", [*BASE, "method.value_clip=0.7", "method.value_loss.coef=0.25"])
    assert (cfg.method.value_loss.clip, cfg.method.value_loss.coef) == (0.7, 0.25)


def test_both_names_in_the_folder_of_a_run_are_refused(new: DictConfig, tmp_path: Path):
    folder = old_folder(new, tmp_path / "run")
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("value_clip: 0.7", "value_clip: 0.7\n  value_loss: {clip: 0.3}"))
    with pytest.raises(ConfigError, match=r"method\.value_clip=0\.7 and method\.value_loss\.clip=0\.3"):
        read_config(folder)


@pytest.mark.parametrize("target", ARGUMENTS)
def test_every_new_name_is_an_option_and_no_old_one_is(target: str):
    made = locate(target)
    options = inspect.signature(made).parameters
    for old, name in ARGUMENTS[target].items():
        group, _, option = name.partition(".")
        assert old not in options
        if not option:
            assert name in options
            continue
        kinds = [
            kind for kind in getattr(annotations_of(made)[group], "__args__", ()) if dataclasses.is_dataclass(kind)
        ]
        assert [option in {field.name for field in dataclasses.fields(kind)} for kind in kinds] == [True], name
