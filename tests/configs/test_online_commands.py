"""On-policy methods from the command line: what fails before weights load, sweeps, evaluation, what is reported."""

from __future__ import annotations

import csv
import json
import re

import pytest

from rlhf_lightning.cli.build import make_run
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.launch import per_job
from rlhf_lightning.cli.online_checks import without_effect
from rlhf_lightning.cli.results import Result
from tests.helpers.fake_server import fake_server

REWARD = ["reward=function", "reward.target=tests.helpers.online.letters", "allow_targets=[tests]"]
SMALL = ["rollout.max_new_tokens=4", "method.rollout.group_size=2"]
COMPARED = ["reward=llm_compare", "reward.judge.url=http://127.0.0.1:9"]
SERVER = ["rollout.url=http://127.0.0.1:9"]
VLLM = ["rollout=vllm_server", *SERVER, "rollout.lora=true"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=grpo"], r"reward=none, and this method learns from rewards of the policy's own responses: choose"),
        (["method=grpo_process", *REWARD], r"learns from rewards of steps, and the reward 'letters' gives one number"),
        (
            ["method=ppo", "method.policy_loss.ptx_coef=0.1", *REWARD],
            r"method.policy_loss.ptx_coef=0.1 mixes .* \+data@data.ptx=ultrachat",
        ),
        (["method=grpo", *REWARD, "data.max_tokens=64"], r"set data.batch_size \(prompts of an optimiser step\)"),
        (["method=grpo", *REWARD, "method.rollout.temperature=0.0"], r"method.rollout.temperature=0.0 must be posi"),
        (
            ["method=grpo", *REWARD, "method.rollout.keep=9"],
            r"method.rollout.keep=9 must lie between 1 and group_size=8",
        ),
        (["method=grpo", *REWARD, "rollout=openai", *SERVER], r"rollout=openai cannot follow the policy"),
        (["method=grpo", *REWARD, *VLLM], r"rollout.lora=true needs an adapter: set adapter=lora"),
        (
            ["method=grpo", *REWARD, *VLLM, "adapter=lora", "adapter.init=pissa"],
            r"adapter.init=pissa changes the base's weights when training starts: set rollout.lora=false",
        ),
        (["method=grpo", *REWARD, *VLLM, "adapter=qlora", "rollout.lora=false"], r"a quantised base .adapter.quantize"),
        (["method=grpo", *REWARD, "rollout.max_new_tokens=0"], r"max_new_tokens=0 must be at least 1"),
        (
            ["method=ppo", *COMPARED],
            r"needs at least 2: set method.rollout.group_size=2 method.rollout.validation_samp",
        ),
        (
            ["method=remax", *COMPARED, "method.rollout.group_size=2", "method.rollout.validation_samples=2"],
            r"the greedy response that is this method's baseline is scored alone: choose method=rloo",
        ),
        (["method=grpo", *COMPARED], r"needs at least 2: set method.rollout.validation_samples=2 or more"),
        (["method=grpo", *REWARD, "method.rollout.groups=4"], r"(?s)groups.*Did you mean .*group_size"),
    ],
)
def test_refused_before_weights_load(options, message, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    with pytest.raises(ValueError, match=message):
        make_run(compose("train", [*tiny, *options, f"paths.output_dir={tmp_path}"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=grpo", "method.rollout.group_size=1"], r"its advantage is always 0. Set method.rollout.group_size"),
        (["method=grpo", "method.rollout.keep=1"], r"its advantage is always 0. Set .* \(and keep\) to 2 or more"),
        (["method=rloo", "method.rollout.group_size=1"], r"rloo compares .*: set method.rollout.group_size >= 2"),
        (["method=grpo", "method.rollout.greedy_baseline=true"], r"greedy_baseline=true decodes .* method=remax"),
        (
            ["method=grpo", "+method.credit.multi_reward=normalize_then_sum", "method.kl.apply_to=none"],
            r"'letters' has no terms",
        ),
        (
            ["method=grpo", "+method.credit.reward_weights={a: 2.0}"],
            r"reward_weights are of multi_reward=normalize_then_sum",
        ),
    ],
)
def test_what_could_not_teach_is_refused_before_weights_load(options, message, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    with pytest.raises(ValueError, match=message):
        make_run(compose("train", [*tiny, *REWARD, *options, f"paths.output_dir={tmp_path}"]))


@pytest.mark.parametrize("method", ["reinforce", "reinforce_pp", "ppo"])
def test_one_response_a_prompt_is_enough_where_none_are_compared(method, tiny, tmp_path):
    options = [f"method={method}", "method.rollout.group_size=1", f"paths.output_dir={tmp_path}"]
    assert make_run(compose("train", [*tiny, *REWARD, *options])).module.rollout.group_size == 1


def test_a_weight_of_a_reward_names_one_of_its_terms(tiny, tmp_path):
    """Misspelt, it would silently be 1."""
    terms = ["reward=composite", "+reward@reward.terms.short=length", "+method.credit.reward_weights={shrot: 2.0}"]
    options = ["method=grpo", *terms, "+method.credit.multi_reward=normalize_then_sum", "method.kl.apply_to=none"]
    with pytest.raises(ValueError, match=r"reward_weights.shrot: the reward has no such term. Did you mean short\?"):
        make_run(compose("train", [*tiny, *options, f"paths.output_dir={tmp_path}"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["trainer.overfit_batches=2"], r"trainer.overfit_batches=2 repeats batches, and every rollout is a new one"),
        (["+trainer.reload_dataloaders_every_n_epochs=1"], r"would begin the rollouts again at the first prompt"),
        (
            [
                "+callbacks.accumulate._target_=lightning.pytorch.callbacks.GradientAccumulationScheduler",
                "+callbacks.accumulate.scheduling={0: 1, 4: 2}",
            ],
            r"GradientAccumulationScheduler changes how many",
        ),
    ],
)
def test_what_a_trainer_would_do_to_rollouts_is_refused(options, message, tiny, tmp_path):
    run = make_run(compose("train", [*tiny, *REWARD, *SMALL, "method=grpo", *options, f"paths.output_dir={tmp_path}"]))
    with pytest.raises(ValueError, match=message):
        run.data.setup("fit")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["method=grpo", *REWARD], []),
        (["method=dpo"], []),
        (
            [
                "method=grpo",
                *REWARD,
                "data.loading.num_workers=2",
                "data.loading.bucket=4",
                "data.spec.max_response_length=9",
            ],
            [
                "data.loading.num_workers=2: rollouts are packed",
                "data.loading.bucket=4: a rollout's",
                "rollout.max_new_tokens limits",
            ],
        ),
        (["method=rlsc", *REWARD], ["reward: 'letters' is logged, and this method learns from no reward"]),
        (
            ["method=ppo", *REWARD, "+data@data.ptx=tiny"],
            ["data.ptx: this method gives it no weight (method.policy_loss.ptx_coef"],
        ),
        (["method=dpo", "rollout=vllm"], ["rollout: this method learns from the responses of the data"]),
    ],
)
def test_options_without_an_effect_are_named(options, parts, tiny, tmp_path):
    cfg = compose("train", [*tiny, *options, f"paths.output_dir={tmp_path}"])
    run = make_run(cfg)
    lines = list(without_effect(cfg, run.module, run.data))
    assert len(lines) == len(parts)
    assert all(part in line for part, line in zip(parts, lines, strict=True)), lines


def test_more_prompts_a_rollout_than_there_are(tiny, tmp_path):
    options = [*tiny, *REWARD, "method=grpo", "method.rollout.minibatches=8", f"paths.output_dir={tmp_path}"]
    run = make_run(compose("train", options))
    with pytest.raises(ValueError, match=r"minibatches=8 x data.batch_size=2 = 16 prompts, and the data has \d"):
        run.data.setup("fit")


def test_a_run_reports_what_its_rollouts_are(rlhf, tiny, tmp_path):
    options = [*REWARD, *SMALL, "method=grpo", "reference=cached", f"paths.output_dir={tmp_path}/run"]
    code, _, err = rlhf("train", *tiny, *options)
    assert code == 0, err
    assert (
        "each of 2 prompts with 2 samples of at most 4 tokens (transformers), for 1 pass of 1 step; reward: letters"
        in err
    )
    assert "method    grpo: ppo(ratio=token, " in err
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
    evaluated, trained = Result.read(tmp_path / "eval").metrics, Result.read(tmp_path / "run").metrics
    assert "val/reward/mean" in out
    assert "method    grpo: ppo(ratio=token, " in err
    assert 0 <= evaluated["val/reward/mean"] <= 1
    assert evaluated["val/kl/reference"] != 0, "the checkpoint was not loaded"
    assert {name for name in trained if name.startswith("val/reward")} <= evaluated.keys()


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


@pytest.mark.slow
def test_a_sweep_over_on_policy_methods(rlhf, tiny, tmp_path):
    options = [*REWARD, *SMALL, "optimized_metric=val/reward/mean", f"paths.sweeps={tmp_path}/sweeps"]
    code, _, err = rlhf("train", "-m", "method=grpo,rloo", *tiny, *options)
    assert code == 0, err
    results = list((tmp_path / "sweeps").rglob("result.json"))
    assert len(results) == 2
    assert all(json.loads(file.read_text())["status"] == "done" for file in results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            ["method=dpo"],
            r"rows of up to \d+ tokens, and .* was made for 16 .*set data\.spec\.max_length lower",
            marks=pytest.mark.slow,
        ),
        (
            ["method=grpo", *REWARD, *SMALL],
            r"prompts and responses of up to \d+ tokens, .* or rollout\.max_new",
        ),
    ],
)
def test_rows_beyond_the_models_positions_are_reported(rlhf, options, message):
    code, out, err = rlhf("train", "model=tiny_random", "trainer=debug", "model.max_length=16", *options)
    assert code == 0, err
    assert re.search(message, " ".join((out + err).split()))
    code, out, err = rlhf("train", "model=tiny_random", "trainer=debug", *options)
    assert "was made for" not in out + err


def test_samples_of_a_share_of_the_rows_have_their_own_columns(rlhf, tmp_path, monkeypatch):
    """Rows that were put aside for validation are counted from 0; the reward of each still sees its own column."""
    rows = [{"prompt": f"say {word}", "own": word} for word in (f"w{number}x" for number in range(20))]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "column_rewards.py").write_text("def own(prompt, response, own):\n    return float(own in prompt)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = ["reward=function", "reward.target=column_rewards.own", "allow_targets=[column_rewards]"]
    source = ["data=json", "data.source.path=prompts.jsonl", "data.validation=0.3", "data.batch_size=4"]
    code, _, err = rlhf(
        "train", "method=rloo", "model=tiny_random", "trainer=debug", *SMALL, *source, *reward, "paths.output_dir=out"
    )
    assert code == 0, err
    tables = sorted((tmp_path / "out" / "samples").glob("*.jsonl"))
    rewards = [json.loads(line)["reward"] for table in tables for line in table.read_text().splitlines()]
    assert len(rewards) >= 6
    assert set(rewards) == {1.0}


@pytest.fixture
def babbling():
    """A judge whose verdicts cannot be read."""
    with fake_server() as server:
        server.answers["/v1/chat/completions"] = lambda _: {"choices": [{"message": {"content": "Well, it depends."}}]}
        yield ["reward=llm_judge", f"reward.judge.url={server.url}"]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (
            ["train", "method=grpo", *SMALL],
            1,
            "rollouts 0 to 4 have nothing to learn from: the reward 'rating' scored no response",
        ),
        (["evaluate", "method=bradley_terry"], 2, "reward 'rating' scored none of the"),
    ],
)
def test_a_judge_that_cannot_be_read_is_no_bug_of_ours(command, code, message, babbling, rlhf, tiny):
    exit_code, _, err = rlhf(*command, *tiny, *babbling, "trainer.limit_val_batches=0", "paths.output_dir=run")
    text = " ".join(err.split())
    assert message in text
    assert "no verdict could be read in 100% of the judge's replies: raise reward.writing.max_tokens" in text
    assert "looks like a bug" not in text
    assert exit_code == code
