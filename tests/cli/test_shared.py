"""Jobs that share their first rounds: those whose scores have an identity."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from rlhf_lightning.cli.build import make_run
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.shared import reward_identity

TINY = ["method=dpo", "rounds=iterative", "model=tiny", "data=tiny", "trainer=tiny", "callbacks=none"]


def identity(**reward):
    return reward_identity(OmegaConf.create({"reward": reward, "method": {}}))


def test_a_reward_model_is_known_by_its_content(tmp_path):
    """The same path with other weights is another reward; a name on a hub is known by nothing."""
    model = {"_target_": "rlhf_lightning.rewards.ModelReward", "path": str(tmp_path)}
    (tmp_path / "weights").write_text("one")
    before = identity(**model)
    assert before == identity(**model) != identity(**model, scale=-1.0)
    (tmp_path / "weights").write_text("two")
    assert before != identity(**model)
    assert identity(**model | {"path": "someone/a_reward_model"}) is None


@pytest.mark.parametrize(
    "reward",
    [
        {"_target_": "rlhf_lightning.rewards.FunctionReward", "target": "my_ideas.brief"},
        {"_target_": "my_ideas.Reward"},
        {"_target_": "rlhf_lightning.rewards.RatingJudge", "judge": {"_target_": "rlhf_lightning.rollout.ChatClient"}},
        {"_target_": "rlhf_lightning.rewards.Composite", "terms": {"a": {"_target_": "my_ideas.Reward"}}},
    ],
)
def test_what_code_or_a_server_says_is_not_shared(reward):
    assert identity(**reward) is None


@pytest.mark.parametrize(
    ("options", "fixed"),
    [
        (["method=rso_sigmoid", "rounds=rso"], True),
        (["method=rso_sigmoid", "rounds=rso", "rounds.reference=ema", "reference=frozen"], False),
        (["method=xpo", "rounds=xpo"], False),
        ([], False),
    ],
)
def test_later_rounds_are_shared_where_the_start_draws_alone(options, fixed, tmp_path):
    given = ["reward=gold", f"paths.shared={tmp_path / 'store'}", f"paths.output_dir={tmp_path}"]
    run = make_run(compose("train", [*TINY, *options, *given]))
    assert run.data.shared.fixed is fixed


@pytest.mark.parametrize(
    ("options", "sweeping", "shares"),
    [
        (["reward=gold"], False, False),
        (["reward=gold"], True, True),
        (["reward=gold", "paths.shared=null"], True, False),
        (["reward=gold", "paths.shared={folder}"], False, True),
        (["reward=self_rewarding"], True, False),
    ],
)
def test_who_shares(options, sweeping, shares, tmp_path, monkeypatch):
    if sweeping:
        monkeypatch.setenv("RLHF_SWEEP", "method")
    given = [option.format(folder=tmp_path / "store") for option in options]
    run = make_run(compose("train", [*TINY, *given, f"paths.output_dir={tmp_path}"]))
    assert (run.data.shared is not None) is shares
