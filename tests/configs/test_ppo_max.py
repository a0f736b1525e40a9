"""experiment/ppo_max_ablation: every recipe takes part and differs from PPO-max in the switch of its name."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.compose import compose, compose_with_overrides
from rlhf_lightning.conf_dir import conf_dir

RECIPES = sorted(path.stem for path in (conf_dir() / "recipe" / "ppo_max").glob("*.yaml"))
#: Options whose value differs from that of PPO-max with everything on.
SWITCHES = {
    "no_kl": {"method.kl.apply_to"},
    "no_reward_scale": {"method.credit.shaping.scale", "method.credit.shaping.center", "method.credit.shaping.clip"},
    "no_value_clip": {"method.value_loss.clip"},
    "no_critic_start": {"method.critic.head", "method.critic.source"},
    "no_gae": {"method.advantage.lam"},
    "no_policy_clip": {"method.loss.eps_low", "method.loss.eps_high"},
    "no_gradient_clip": {"trainer.gradient_clip_val"},
}


def recipe(name: str) -> DictConfig:
    return compose("train", ["experiment=ppo_max_ablation", f"recipe=ppo_max/{name}", "reward.path=out/reward_model"])


def changed(one: DictConfig, other: DictConfig, key: str = "") -> set[str]:
    """Options of method and trainer whose values differ."""
    if not (OmegaConf.is_dict(one) and OmegaConf.is_dict(other)):
        return set() if one == other else {key}
    return set().union(
        *(changed(one.get(name), other.get(name), f"{key}.{name}".lstrip(".")) for name in {*one, *other})
    )


@pytest.fixture(scope="module")
def everything() -> DictConfig:
    return recipe("all")


def test_every_recipe_takes_part_with_three_seeds():
    options = ["experiment=ppo_max_ablation", "reward.path=out/reward_model"]
    cfg, _ = compose_with_overrides("train", options, check=False, with_hydra=True)
    params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True)
    assert sorted(params["recipe"].split(",")) == [f"ppo_max/{name}" for name in RECIPES]
    assert params["seed"] == "1,2,3"


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_one_switch_is_off(everything, name):
    assert changed(everything, recipe(name)) == SWITCHES[name]


def test_without_any_switch(everything):
    assert changed(everything, recipe("none")) == set().union(*SWITCHES.values())


def test_gold_is_measured_and_not_learned_from(everything):
    assert everything.reward._target_.endswith("ModelReward")
    assert everything.optimized_metric == "val/gold/reward"
