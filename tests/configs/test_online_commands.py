"""On-policy methods from the command line: what fails before weights load, sweeps, evaluation, what is said."""

from __future__ import annotations

import csv
import json

import pytest

from rlhf_lightning.cli.build import make_run
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.launch import per_job
from rlhf_lightning.cli.results import Result

REWARD = ["reward=function", "reward.target=tests.helpers.online.letters", "allow_targets=[tests]"]
SMALL = ["rollout.max_new_tokens=4", "method.rollout.group_size=2"]
COMPARED = ["reward=llm_compare", "reward.judge.url=http://127.0.0.1:9"]
SERVER = ["rollout.url=http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=grpo"], r"reward=none, and this method learns from rewards of the policy's own responses: choose"),
        (["method=grpo_process", *REWARD], r"learns from rewards of steps, and the reward 'letters' gives one number"),
        (["method=ppo", "method.ptx_coef=0.1", *REWARD], r"method.ptx_coef=0.1 mixes .* \+data@data.ptx=ultrachat"),
        (["method=grpo", *REWARD, "data.max_tokens=64"], r"set data.batch_size \(prompts of an optimiser step\)"),
        (["method=grpo", *REWARD, "method.rollout.temperature=0.0"], r"method.rollout.temperature=0.0 must be posi"),
        (
            ["method=grpo", *REWARD, "method.rollout.keep=9"],
            r"method.rollout.keep=9 must lie between 1 and group_size=8",
        ),
        (["method=grpo", *REWARD, "rollout=openai", *SERVER], r"rollout=openai cannot follow the policy"),
        (["method=grpo", *REWARD, "rollout.max_new_tokens=0"], r"max_new_tokens=0 must be at least 1"),
        (
            ["method=ppo", *COMPARED],
            r"needs at least 2: set method.rollout.group_size=2 method.rollout.validation_samp",
        ),
        (["method=grpo", *COMPARED], r"needs at least 2: set method.rollout.validation_samples=2 or more"),
        (["method=grpo", *REWARD, "method.rollout.groups=4"], r"(?s)groups.*Did you mean .*group_size"),
    ],
)
def test_refused_before_weights_load(options, message, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    with pytest.raises(ValueError, match=message):
        make_run(compose("train", [*tiny, *options, f"paths.output_dir={tmp_path}"]))


def test_more_prompts_a_rollout_than_there_are(tiny, tmp_path):
    options = [*tiny, *REWARD, "method=grpo", "method.rollout.minibatches=8", f"paths.output_dir={tmp_path}"]
    run = make_run(compose("train", options))
    with pytest.raises(ValueError, match=r"minibatches=8 x data.batch_size=2 = 16 prompts, and the data has \d"):
        run.data.setup("fit")


def test_a_run_says_what_its_rollouts_are(rlhf, tiny, tmp_path):
    options = [*REWARD, *SMALL, "method=grpo", "reference=cached", f"paths.output_dir={tmp_path}/run"]
    code, _, err = rlhf("train", *tiny, *options)
    assert code == 0, err
    assert (
        "each of 2 prompts with 2 samples of at most 4 tokens (transformers), for 1 pass of 1 step; reward: letters"
        in err
    )
    assert "reference: frozen (reference=cached has no numbers of responses that are not drawn yet)" in err
    rows = [json.loads(line) for line in (tmp_path / "run/rollouts/00000.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert {row["terms"]["letters"] == row["score"] for row in rows} == {True}
    assert all(len(row["ids"]) == len(row["log_probs"]) == row["tokens"] <= 4 for row in rows)
    with (tmp_path / "run/metrics.csv").open() as file:
        logged = next(csv.DictReader(file))
    assert {
        "train/reward/mean",
        "train/response/truncated",
        "train/time/generate",
        "train/group/zero_std",
    } <= logged.keys()


def test_evaluate_samples_with_the_runs_reward(rlhf, tiny, tmp_path):
    options = [*REWARD, *SMALL, "method=grpo", "optimizer.lr=0.1", f"paths.output_dir={tmp_path}/run"]
    assert rlhf("train", *tiny, *options)[0] == 0
    whole = ["trainer.accelerator=cpu", "callbacks.samples=null", "allow_targets=[tests]"]
    code, out, err = rlhf("evaluate", f"run={tmp_path}/run", *whole, "paths.output_dir=eval")
    assert code == 0, err
    found, own = Result.read(tmp_path / "eval").metrics, Result.read(tmp_path / "run").metrics
    assert "val/reward/mean" in out
    assert 0 <= found["val/reward/mean"] <= 1
    assert found["val/kl/reference"] != 0, "the checkpoint was not loaded"
    assert {name for name in own if name.startswith("val/reward")} <= found.keys()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.rollout.group_size=2", "method.rollout.group_size=choice(2)"),
        ("+method.kl={coef: 0.1}", "+method.kl=choice({coef: 0.1})"),
        ("method.loss.eps_low=0.1,0.2", "method.loss.eps_low=0.1,0.2"),
        ("optimizer.lr=0.1", "optimizer.lr=0.1"),
        ("seed=3", "seed=3"),
    ],
)
def test_options_of_a_swept_group_wait_for_the_jobs(override, expected):
    """Hydra would look for them in method=dpo."""
    assert per_job(["method=grpo,rloo", override], {"method", "method.loss.eps_low"}) == ["method=grpo,rloo", expected]


def test_a_sweep_over_on_policy_methods(rlhf, tiny, tmp_path):
    options = [*REWARD, *SMALL, "optimized_metric=val/reward/mean", f"paths.sweeps={tmp_path}/sweeps"]
    code, _, err = rlhf("train", "-m", "method=grpo,rloo", *tiny, *options)
    assert code == 0, err
    results = list((tmp_path / "sweeps").rglob("result.json"))
    assert len(results) == 2
    assert all(json.loads(file.read_text())["status"] == "done" for file in results)
