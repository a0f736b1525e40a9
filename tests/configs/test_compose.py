"""Every yaml in conf/ composes and passes the check of the command that uses it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.game import game_of
from rlhf_lightning.conf_dir import conf_dir

CONF = conf_dir()
ROOTS = ("train", "evaluate", "generate", "data", "game", "chain", "export", "optimize_prompt", "steer")
#: Methods and rewards are composed, and more than that, by test_methods_fit and test_generate_rewards.
GROUPED = sorted(
    path.relative_to(CONF) for path in CONF.glob("*/*.yaml") if path.parent.name not in ("method", "reward")
)


def _experiments_with(key: str) -> list[Path]:
    """Experiments of several jobs."""
    files = [file for file in GROUPED if file.parts[0] == "experiment"]
    return [file for file in files if re.search(rf"^{key}:", (CONF / file).read_text(), re.M)]


GAMES, CHAINS = _experiments_with("game"), _experiments_with("chain")
#: What a file cannot be composed without.
GIVEN = {
    "world/online": ["method=grpo", "model=tiny", "data=tiny"],
    "proposer/phrases": ["proposer.phrases=[please,briefly]"],
}
#: Groups of a training job that are chosen independently of each other: a file of each in one composition.
INDEPENDENT = (
    "adapter", "callbacks", "data", "guidance", "logger", "optimizer", "prompting", "reference", "rollout", "rounds",
    "scheduler", "strategy", "trainer",
)  # fmt: skip
FILES = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in INDEPENDENT}
#: Files that need a package of an extra.
NEEDS = {"sweep/optuna": "hydra_plugins.hydra_optuna_sweeper", "optimizer/adamw8bit": "bitsandbytes"}


def composed(command: str, *overrides: str):
    """Compose; what a file leaves to the user (``???``) gets a value, anything else is an error of the file."""
    given = list(overrides)
    for _ in range(5):
        try:
            return compose(command, given)
        except ConfigError as error:
            missing = re.findall(r"^(\S+) has no value and needs one", str(error), re.MULTILINE)
            if not missing:
                raise
            given += [f"{key}=x" for key in missing]
    raise AssertionError(f"{overrides} cannot be completed")


def check_game(name: str) -> None:
    """Every stage composes, and says what is left to the user."""
    game = game_of(compose("game", [f"experiment={name}"]), Path("g"), [])
    for move in game.moves():
        assert composed("train", *move.options).seed is not None


def command_of(group: str) -> str:
    """A command whose root has the group."""
    return next(root for root in ROOTS if re.search(rf"- (optional )?{group}:", (CONF / f"{root}.yaml").read_text()))


@pytest.mark.parametrize("command", [root for root in ROOTS if root not in ("game", "chain", "export")])
def test_defaults_compose(command):
    assert composed(command).model._target_.startswith("rlhf_lightning.models")


@pytest.mark.parametrize("turn", range(max(map(len, FILES.values()))))
def test_files_of_independent_groups_compose(turn):
    """Every file of every such group in its turn; the error of a file names it."""
    chosen = {group: names[turn % len(names)] for group, names in FILES.items()}
    for group, name in chosen.items():
        if f"{group}/{name}" in NEEDS and importlib.util.find_spec(NEEDS[f"{group}/{name}"].partition(".")[0]) is None:
            chosen[group] = FILES[group][0]
    assert composed("train", *(f"{group}={name}" for group, name in chosen.items())).seed is not None


@pytest.mark.parametrize(
    "file",
    [file for file in GROUPED if file.parts[0] not in INDEPENDENT and file not in CHAINS],
    ids=lambda file: file.with_suffix("").as_posix(),
)
def test_file_composes(file):
    name = file.with_suffix("").as_posix()
    if name in NEEDS and importlib.util.find_spec(NEEDS[name].partition(".")[0]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    if name == "sweep/optuna":
        pytest.importorskip(NEEDS[name])
    group, option = file.parts[0], file.stem
    if file in GAMES:
        check_game(option)
        return
    cfg = composed(command_of(group), f"{group}={option}", *GIVEN.get(name, ()))
    assert cfg.seed is not None


def test_a_value_that_another_option_takes_over_is_asked_for_by_its_own_name():
    with pytest.raises(ConfigError, match=r"^reward\.target has no value and needs one: reward\.target="):
        compose("train", ["reward=function"])


def test_every_folder_is_a_group_of_some_command():
    assert {command_of(folder.name) for folder in CONF.iterdir() if folder.is_dir()} <= set(ROOTS)


@pytest.mark.parametrize(
    "name",
    sorted(
        path.stem for path in (CONF / "experiment").glob("*.yaml") if path.relative_to(CONF) not in [*GAMES, *CHAINS]
    ),
)
def test_command_line_wins_over_an_experiment(name):
    assert composed("train", f"experiment={name}", "optimizer.lr=0.125", "seed=7").optimizer.lr == 0.125


#: Settings of a method in an experiment; conf/recipe/rounds is chosen by name, recipe=rounds/raft.
SETTINGS = sorted(
    file for file in CONF.glob("recipe/*/*.yaml") if (CONF / "experiment" / f"{file.parent.name}.yaml").exists()
)


@pytest.mark.parametrize("file", SETTINGS, ids=lambda file: "-".join(file.parts[-2:]))
def test_a_methods_settings_in_an_experiment_stand_above_the_experiment(file):
    """And the command line above both; another experiment knows nothing of them."""
    chosen = [f"experiment={file.parent.name}", f"method={file.stem}"]
    cfg, bare = composed("train", *chosen), composed("train", *chosen, "~recipe")
    assert (cfg.method, cfg.optimizer, cfg.trainer) != (bare.method, bare.optimizer, bare.trainer)
    assert bare.method == composed("train", f"method={file.stem}", "rollout.max_new_tokens=20").method
    assert composed("train", *chosen, "optimizer.lr=0.125").optimizer.lr == 0.125


def test_an_experiment_wins_over_the_groups_it_overrides():
    cfg = composed("train", "experiment=smollm2_dpo")
    assert (cfg.method.loss.beta, cfg.optimizer.lr, cfg.trainer.max_epochs, cfg.data.batch_size) == (0.5, 1e-6, 2, 128)


def test_a_key_that_no_yaml_mentions_needs_no_plus():
    assert composed("train", "optimizer.foreach=true", "trainer.detect_anomaly=true").optimizer.foreach is True


def test_a_whole_float_becomes_an_int():
    steps = composed("train", "trainer.max_steps=1e3").trainer.max_steps
    assert (steps, type(steps)) == (1000, int)


def test_config_dir_adds_files(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [dpo, _self_]\nloss: {beta: 0.7}\n")
    cfg = compose("train", ["method=mine"], config_dirs=[tmp_path])
    assert cfg.method.loss.beta == 0.7


def test_rlhf_conf_wins_over_ours(tmp_path, monkeypatch):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "sgd.yaml").write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.75\n")
    monkeypatch.setenv("RLHF_CONF", str(tmp_path))
    assert compose("train", ["optimizer=sgd"]).optimizer.lr == 0.75
