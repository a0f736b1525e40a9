"""``method.kl.estimator=full`` from the command line: runs, what they log, what is refused before weights load."""

from __future__ import annotations

import pytest
from hydra.errors import InstantiationException

from rlhf_lightning.cli.build import make_run
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.results import Result

REWARD = ["reward=function", "reward.target=tests.helpers.online.letters", "allow_targets=[tests]"]
FULL = "method.kl.estimator=full"


@pytest.mark.slow
def test_in_the_tiny_world_it_is_what_the_world_measures(rlhf, tmp_path):
    """Validation's mean over its own samples, and the evaluator's exact divergence over others."""
    options = ["data.source.size=64", "optimizer.lr=1.0e-3", "logger=none", "paths.output_dir=run"]
    code, _, err = rlhf("train", "experiment=tiny", "method=grpo", FULL, *options)
    assert code == 0, err
    metrics = Result.read(tmp_path / "run").metrics
    assert metrics["val/gold/kl"] > 0.05
    assert metrics["val/kl/reference"] == pytest.approx(metrics["val/gold/kl"], rel=0.15)
    assert metrics["train/kl/loss"] == metrics["train/kl/token"] >= 0
    assert metrics["train/kl/coef"] == pytest.approx(0.04)


def test_ppo_charges_it_in_the_reward_and_warns_of_what_that_leaves_out(rlhf, tiny, tmp_path):
    small = ["rollout.max_new_tokens=4", "optimizer.lr=1.0e-2", "paths.output_dir=run"]
    code, _, err = rlhf("train", *tiny, *REWARD, *small, "method=ppo", FULL)
    assert code == 0, err
    assert "method.kl.estimator=full in the reward charges for where the models differ" in err
    metrics = Result.read(tmp_path / "run").metrics
    assert metrics["val/kl/reference"] > metrics["val/kl/token"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=grpo", FULL, "method.kl.is_correct=true"], r"has no such token: set method.kl.is_correct=false"),
        (["method=grpo", FULL, "reference=none"], r"the loss needs a reference, but reference=none: choose"),
        (
            ["method=grpo", "method.kl.estimator=ful"],
            r"method.kl.estimator='ful'; it can be .*k3_straight_through, full",
        ),
    ],
)
def test_refused_before_weights_load(options, message, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    with pytest.raises((ValueError, InstantiationException), match=message):
        make_run(compose("train", [*tiny, *REWARD, *options, f"paths.output_dir={tmp_path}"]))
