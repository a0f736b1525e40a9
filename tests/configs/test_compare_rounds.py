"""experiment/compare_rounds: every recipe takes part, with the rounds that it is named after, and gold is no reward."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.compose import compose, compose_with_overrides
from rlhf_lightning.cli.round_methods import rounds_entries
from rlhf_lightning.conf_dir import conf_dir

RECIPES = sorted(path.stem for path in (conf_dir() / "recipe" / "rounds").glob("*.yaml"))
ROUNDS = sorted(path.stem for path in (conf_dir() / "rounds").glob("*.yaml") if path.stem != "none")
#: Rounds that are not compared, and why.
OTHERS = {
    "dice": "it starts from a DPO run, not from the base",
    "self_rewarding": "its judge is the policy, and the tiny one knows no digits",
}


def recipe(name: str):
    return compose("train", ["experiment=compare_rounds", f"recipe=rounds/{name}"])


def test_every_recipe_takes_part_with_three_seeds():
    cfg, _ = compose_with_overrides("train", ["experiment=compare_rounds"], check=False, with_hydra=True)
    params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True)
    assert sorted(params["recipe"].split(",")) == [f"rounds/{name}" for name in RECIPES]
    assert params["seed"] == "1,2,3"


def test_every_file_of_rounds_is_compared():
    texts = "".join((conf_dir() / "recipe" / "rounds" / f"{name}.yaml").read_text() for name in RECIPES)
    assert {name for name in ROUNDS if f"override /rounds: {name}\n" not in texts} == set(OTHERS)


@pytest.mark.parametrize("name", RECIPES)
def test_jobs_learn_from_as_many_groups_and_never_from_gold(name):
    """1024 groups of the data, or of prompts with the pairs that a selector makes of each; four validations."""
    cfg = recipe(name)
    assert cfg.data.source.size * (2 if name == "rso" else 1) == 1024
    assert cfg.data.source.error == 1.0
    assert not cfg.reward or cfg.reward._target_.endswith("LabelScorer")
    assert cfg.trainer.val_check_interval == 0.25
    assert cfg.optimized_metric == "val/gold/reward"


def test_a_method_of_ones_own_choice_meets_no_recipe():
    """Recipes of methods are found by the names of experiment and method; these are not among them."""
    cfg = compose("train", ["experiment=compare_rounds", "method=spin"])
    assert not cfg.rounds


@pytest.mark.parametrize("name", ROUNDS)
def test_the_tiny_world_has_settings_for_every_file_of_rounds(name):
    method = rounds_entries()[name].methods[0]
    cfg = compose("train", ["experiment=tiny", f"method={method}", f"rounds={name}"])
    assert cfg.rollout.max_new_tokens == 40
    assert cfg.data.source.size <= 1024
