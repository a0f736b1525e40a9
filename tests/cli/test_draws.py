"""Jobs that draw are recognised by configuration and method, never by the kind of data in batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from rlhf_lightning import compose, methods
from rlhf_lightning.cli.build import reference_kind
from rlhf_lightning.cli.draws import draws, kind_read
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.online_checks import without_effect
from rlhf_lightning.data.kinds import KINDS, PROMPTS
from rlhf_lightning.data.module import AlignmentDataModule
from rlhf_lightning.methods import PPO, AlignmentModule, PolicyGradient, Preference, Supervised
from tests.helpers.training import examples

ROUNDS = OmegaConf.create({"rounds": {"some": "options"}})
NO_ROUNDS = [OmegaConf.create({}), OmegaConf.create({"rounds": None}), OmegaConf.create({"rounds": {}})]


@pytest.mark.parametrize("cfg", NO_ROUNDS, ids=["no group", "null", "none.yaml"])
@pytest.mark.parametrize(
    ("method", "drawn"), [(PolicyGradient, True), (PPO, True), (Preference, False), (Supervised, False)]
)
def test_a_method_draws_by_itself(cfg, method, drawn):
    assert draws(cfg, method) is drawn
    assert kind_read(cfg, method, method.kind) == (PROMPTS if drawn else method.kind)


@pytest.mark.parametrize("method", [Preference, Supervised, PolicyGradient])
def test_rounds_draw_whatever_the_method_learns_from(method):
    """A round of DPO reads prompts, and its batches are pairs."""
    assert draws(ROUNDS, method)
    assert kind_read(ROUNDS, method, method.kind) == PROMPTS


def test_methods_that_draw_are_those_whose_batches_are_rollouts():
    classes = [getattr(methods, name) for name in methods.__all__]
    modules = [each for each in classes if isinstance(each, type) and issubclass(each, AlignmentModule)]
    declared = [each for each in modules if isinstance(getattr(each, "kind", None), str)]
    assert len(declared) > 10
    assert [each for each in declared if each.draws == KINDS[each.kind].has_responses] == []


def test_a_drawn_job_caches_no_reference_whatever_its_kind(monkeypatch):
    """Fails where the kind is asked: pairs that a round draws have no cached numbers either."""
    cfg = compose("train", ["method=dpo", "reference=cached", "model=tiny_random"])
    assert reference_kind(cfg, make(cfg.method)) == "cached"
    monkeypatch.setattr(Preference, "draws", True)
    assert reference_kind(cfg, make(cfg.method)) == "auto"


def test_a_rollout_engine_has_an_effect_where_rounds_draw(monkeypatch):
    cfg = compose("train", ["method=dpo", "rollout=vllm_server", "model=tiny_random"])
    line = "rollout: this method learns from the responses of the data and draws none"

    class Module:
        draws, kind, ptx_coef, needs_reward = False, "preference", 0.0, True

    class Data:
        reward, reward_name = None, "none"

    assert line in list(without_effect(cfg, Module, Data))
    Module.draws = True
    assert line not in list(without_effect(cfg, Module, Data))


def test_who_draws_plans_the_steps():
    """Data of prompts plan no steps; data with responses do, unless somebody who draws to them says otherwise."""
    prompts = AlignmentDataModule([replace(row, responses=[[]]) for row in examples(3, responses=1)], kind=PROMPTS)
    pairs = AlignmentDataModule(examples(3), batch_size=8)
    assert (prompts.plans_steps, pairs.plans_steps) == (False, True)
    for data in (prompts, pairs):
        data.setup()
    assert [any(line.startswith("steps:") for line in data.summaries()) for data in (prompts, pairs)] == [False, True]
    pairs.plans_steps = False
    assert not any(line.startswith("steps:") for line in pairs.summaries())
