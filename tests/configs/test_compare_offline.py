"""The experiments that compare methods: who takes part, and that settings of the tiny world reach the jobs."""

from __future__ import annotations

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.cli.compose import compose, compose_with_overrides, register
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.methods.scoring import ScoringModule

METHODS = {path.stem: OmegaConf.load(path) for path in (conf_dir() / "method").glob("*.yaml")}
#: Trains a policy or a judge, and needs more than the tiny world's data.
OTHERS = {
    "knowledge_distillation": "a teacher",
    "pairwise_judge": "judges two answers, writes none",
    "contrastive_instruction": "the first step of two",
    "representation_fit": "an adapter, which the others do not have",
    "lorra": "representation_fit, where the base obeys both contexts",
    "rahf_dual": "a second model",
    "imitation": "sft, where a demonstration is a good response",
}


def compared() -> tuple[set[str], str]:
    cfg, _ = compose_with_overrides("train", ["experiment=compare_offline"], check=False, with_hydra=True)
    params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True)
    return set(params["method"].split(",")), params["seed"]


def trains_policy_offline(name: str) -> bool:
    method = get_class(METHODS[name]._target_)
    return not issubclass(method, ScoringModule) and method.kind != "prompt"


def test_every_offline_policy_takes_part():
    names, seeds = compared()
    assert seeds == "1,2,3"
    assert {"dpo", "kto", "sft", "pro", "cut", "ilql"} <= names
    assert names == {name for name in METHODS if trains_policy_offline(name) and name not in OTHERS}


def test_settings_of_the_world_reach_the_jobs():
    """The tiny world's own settings stand above the experiment's, the user's above both."""
    cfg = compose("train", ["experiment=compare_offline", "method=tr_dpo"], check=False)
    assert cfg.reference.kind == "frozen"
    assert cfg.optimized_metric == "val/gold/reward"
    cfg = compose("train", ["experiment=compare_offline", "method=tr_dpo", "method.loss.beta=0.7"], check=False)
    assert cfg.method.loss.beta == 0.7


def test_stale_exceptions_are_refused():
    register()
    cfg = OmegaConf.create({"names": "${rlhf.choices:method,[dpo,no_such_method]}"})
    with pytest.raises(OmegaConfBaseException, match=r"ConfigError.*no_such_method"):
        _ = cfg.names


#: What a method's settings leave to the user.
GIVEN = {"rahf_dual": ["reference.source.name=runs/bad/export/last"]}


@pytest.mark.parametrize("file", sorted((conf_dir() / "world" / "tiny").glob("*.yaml")), ids=lambda file: file.stem)
def test_settings_of_the_world_fit_their_method(file):
    """Each is named after a method, composes with it, passes the check of its options, and changes something."""
    assert file.stem in METHODS
    overrides = ["experiment=tiny", f"method={file.stem}"]
    composed = OmegaConf.to_container(compose("train", [*overrides, *GIVEN.get(file.stem, ())]))
    bare = OmegaConf.to_container(compose("train", [*overrides, "~world"], check=False))
    assert composed != bare
    assert "world" not in composed, "the file's first line is not # @package _global_"
