"""Every file of conf/reward: it composes and has the defaults of what it makes; rewards are put together."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from rlhf_lightning import compose
from rlhf_lightning.cli.annotations import annotations_of
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.targets import locate
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.models.export.classification import export_scorer
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.scorers.scorer import Scorer
from rlhf_lightning.models.sources import TinyRandom
from rlhf_lightning.rewards import Composite, FunctionReward, MathReward, Reward
from rlhf_lightning.types import sample_groups

FILES = sorted((conf_dir() / "reward").glob("*.yaml"))
#: What a file leaves open because nobody could guess it.
OPEN = {"regex": ["reward.pattern=a"]}
BASE = ["model=tiny_random", "trainer=debug", "method=dpo"]


def keys(file: Path) -> dict[str, object]:
    body = yaml.safe_load(file.read_text()) or {}
    return {name: value for name, value in body.items() if not name.startswith("_")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_states_what_it_is_and_how_to_use_it(file: Path):
    first = file.read_text().splitlines()[0]
    assert re.fullmatch(r"# .+\. rlhf (train|evaluate) .+", first), first


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_of_a_file_composes(file: Path):
    """With a function that is there for the reader's own, and a folder for the date of a run."""
    line = file.read_text().splitlines()[0]
    command = line[line.index(". rlhf ") + 2 :].replace("<date>", "date")
    for example, replacement in (("my_rewards.exact", "operator.eq"), ("[my_rewards]", "[_operator,operator]")):
        command = command.replace(example, replacement)
    _, name, *overrides = shlex.split(command)
    assert bool(compose(name, overrides).get("reward")) == (file.stem != "none")


def test_the_page_names_every_file():
    page = (conf_dir().parent / "docs" / "rewards.md").read_text(encoding="utf-8")
    named = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert {file.stem for file in FILES} - {"none"} <= named


def options_by_default(reward: type, group: str) -> dict[str, object]:
    """Options of a group that a reward takes as a value object, as they are where none is given."""
    kinds = [kind for kind in get_args(annotations_of(reward)[group]) if dataclasses.is_dataclass(kind)]
    return dataclasses.asdict(kinds[0]())


@pytest.mark.parametrize("file", [file for file in FILES if "_target_" in file.read_text()], ids=lambda file: file.stem)
def test_values_of_a_file_are_the_defaults(file: Path):
    """So that a reward made in Python is the one of the command line; deviations of a file are listed here."""
    chosen = {
        "cost",
        "function",
        "gold",
        "grader",
        "grader_judge",
        "grader_match",
        "llm_compare",
        "llm_judge",
        "self_rewarding",
        "classifier",
    }
    if file.stem in chosen:
        pytest.skip("it sets options on purpose")
    body = yaml.safe_load(file.read_text())
    parameters = inspect.signature(locate(body["_target_"])).parameters
    for name, value in keys(file).items():
        default = parameters[name].default
        if value == "???":
            assert default in (inspect.Parameter.empty, None), name  # None: another option may stand for it
        elif isinstance(value, dict) and value:
            defaults = options_by_default(locate(body["_target_"]), name)
            assert value == {option: defaults[option] for option in value}, name
        elif value not in ({}, []) and not str(value).startswith("${"):
            assert value == (list(default) if isinstance(default, tuple) else default), name


TEXTS = "composite exact_match format length lexicon majority math overlong reasoning_gym regex relative_length"


@pytest.mark.parametrize("name", [*TEXTS.split(), "repetition", "self_confidence"])
def test_a_file_makes_a_reward(name: str):
    terms = ["+reward@reward.terms.length=length"] if name == "composite" else []
    cfg = compose("train", [*BASE, f"reward={name}", *OPEN.get(name, []), *terms])
    reward = make(cfg.reward)(tokenizer=TinyRandom().tokenizer())
    assert isinstance(reward, Reward)
    assert reward([]) == []


def test_rewards_are_composed_on_the_command_line():
    cfg = compose(
        "train",
        [
            *BASE,
            "reward=composite",
            "+reward@reward.terms.right=math",
            "+reward@reward.terms.short=relative_length",
            "+reward@reward.terms.short.right=math",
            "reward.terms.right.column=solution",
            "reward.weights.short=0.5",
            "reward.clip.short=[-0.25,0.25]",
        ],
    )
    reward = make(cfg.reward)(tokenizer=TinyRandom().tokenizer())
    assert isinstance(reward, Composite)
    assert isinstance(reward.rewards["right"], MathReward)
    assert reward.rewards["right"].answer == "solution"
    assert reward.weights == {"right": 1.0, "short": 0.5}
    assert reward.clip == {"short": (-0.25, 0.25)}
    with pytest.raises(ValueError, match="needs the column 'solution'"):
        reward.check_columns(["answer"])


@pytest.fixture
def user_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a reward of a user."""
    (tmp_path / "own_rewards.py").write_text(
        "def ends(prompt, response, *, mark='.'):\n    return float(response.endswith(mark))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_rewards.ends"
    sys.modules.pop("own_rewards", None)


def test_a_function_by_its_name(user_reward: str):
    chosen = [
        "reward=function",
        f"reward.target={user_reward}",
        "allow_targets=[own_rewards]",
        "reward.function.mark=es",
    ]
    tokenizer = TinyRandom().tokenizer()
    reward = make(compose("train", [*BASE, *chosen]).reward)(tokenizer=tokenizer)
    assert isinstance(reward, FunctionReward)
    assert reward.name == "ends"
    responses = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Yes", "No.")]
    assert reward(sample_groups([[1]], [responses])) == [[1.0, 0.0]]


def test_a_function_must_be_allowed_and_there(user_reward: str):
    with pytest.raises(ConfigError, match=r"allow_targets=\[own_rewards\]"):
        compose("train", [*BASE, "reward=function", f"reward.target={user_reward}"])
    with pytest.raises(ConfigError, match=r"reward\.target"):
        compose("train", [*BASE, "reward=function"])
    with pytest.raises(ConfigError, match="did you mean ends"):
        compose("train", [*BASE, "reward=function", f"reward.target={user_reward[:-1]}", "allow_targets=[own_rewards]"])


def test_a_missing_column_is_reported_before_weights_load(rlhf, tmp_path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("rlhf_lightning.world.TinyWorld.load", never)
    right = ["reward=composite", "+reward@reward.terms.right=exact_match", "reward.terms.right.column=anser"]
    code, _, err = rlhf("train", "method=grpo", "model=tiny", "data=tiny", "trainer=debug", *right)
    assert code != 0
    assert "reward 'exact_match' needs the column 'anser'" in err
    assert "did you mean 'answer'?" in err


def test_a_reward_of_texts_is_evaluated_on_pairs(rlhf, tiny, tmp_path, user_reward):
    """The chosen responses of these pairs end with 'course.' and the rejected ones do not; a weight of 2 does not
    change which is better."""
    terms = ["+reward@reward.terms.ends=function", f"reward.terms.ends.target={user_reward}", "reward.weights.ends=2.0"]
    mark = ["reward.terms.ends.function.mark=course.", "allow_targets=[own_rewards]", "paths.output_dir=out"]
    code, _, err = rlhf("evaluate", *tiny, "method=bradley_terry", "reward=composite", *terms, *mark)
    assert code == 0, err
    result = Result.read(tmp_path / "out")
    assert result is not None
    assert result.metrics["val/reward/accuracy"] == 1.0
    assert result.metrics["val/reward/margin"] == 2.0
    assert result.metrics["val/reward/ends/unscored"] == 0.0


def test_samples_of_a_policy_are_scored_where_a_reward_can(rlhf, tiny, tmp_path, user_reward):
    """Scores that are missing are missing in the table and left out of the means."""
    (tmp_path / "some_rewards.py").write_text(
        "def some(prompt, response):\n    return None if 'course' in response else 1.0\n"
    )
    sampling = [
        "callbacks=[default]",
        "callbacks.export=null",
        "callbacks.best=null",
        "callbacks.samples.max_new_tokens=4",
    ]
    chosen = ["reward=function", "reward.target=some_rewards.some", "allow_targets=[some_rewards]"]
    overrides = [option for option in tiny if not option.startswith("callbacks")]
    code, _, err = rlhf("evaluate", *overrides, *sampling, *chosen, "method=dpo", "paths.output_dir=out")
    assert code == 0, err
    result = Result.read(tmp_path / "out")
    assert result is not None
    assert result.metrics["val/sample/reward"] == 1.0
    assert "val/sample/data_reward" not in result.metrics  # every one says "of course"
    assert "val/sample/win_rate" not in result.metrics


def test_rewards_of_steps_train(rlhf, tmp_path):
    """Each step of a rollout's row has its number where it ends, and the credit of its tokens comes from it."""
    models = ModelBuilder(TinyRandom(), None, "none")(Scorer)
    export_scorer(models.policy.eval(), models.tokenizer, tmp_path / "judge")
    rows = "".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(8))
    (tmp_path / "prompts.jsonl").write_text(rows)
    data = ["data=json", "data.source.path=prompts.jsonl", "data.validation=null", "data.batch_size=4"]
    few = ["method.rollout.group_size=2", "rollout.max_new_tokens=6", "trainer.max_steps=1", "callbacks=[progress]"]
    judge = ["reward=process", f"reward.path={tmp_path / 'judge'}", "data.spec.cache=false", "paths.output_dir=out"]
    code, _, err = rlhf("train", "method=grpo_process", "model=tiny_random", "trainer=debug", *data, *few, *judge)
    assert code == 0, err
    written = [json.loads(line) for line in (tmp_path / "out/rollouts/00000.jsonl").read_text().splitlines()]
    assert len(written) == 8
    for row in written:
        there = [value for value in row["steps"] if value is not None]
        assert len(row["steps"]) == row["tokens"]
        assert row["terms"]["process"] == pytest.approx(sum(there) / len(there), abs=1e-6)
    assert len({row["advantage"] for row in written}) > 1
