"""Rounds from the command line: what fails before weights load, what is reported, and a run in the tiny world."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from rlhf_lightning.cli.build import make_run, reference_kind
from rlhf_lightning.cli.catalogue import catalogue
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.cli.online_checks import without_effect
from rlhf_lightning.cli.round_methods import rounds_entries
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.methods.optional import check_inputs

REWARD = ["reward=function", "reward.target=tests.helpers.online.letters", "allow_targets=[tests]"]
COMPARES = ["reward=llm_compare", "reward.judge.url=http://127.0.0.1:9"]
#: The files of conf/rounds with the methods that they say they go with.
ENTRIES = rounds_entries()
PAIRS = [(name, method) for name, entry in ENTRIES.items() for method in entry.methods]
#: Experiments with the file that each of them chooses.
EXPERIMENTS = {
    path.stem: chosen[1]
    for path in sorted((conf_dir() / "experiment").glob("*.yaml"))
    if (chosen := re.search(r"override /rounds: (\w+)", path.read_text()))
}
ROUNDS = ["method=dpo", "rounds=iterative", "rollout.max_new_tokens=4"]
DICE = ["reward=implicit", "reward.path=round_start", "reward.reference=previous_round"]
SMALL = ["rounds.draws=[{source: policy, n: 2}]", "rounds.minibatches=2", "rounds.max_refills=0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"reward=none, and rounds.selector compares scores of the policy's own responses: choose reward=model"),
        (
            [*REWARD, "method=sppo_soft", "rounds=sppo"],
            r"FunctionReward scores one by one, and rounds.selector compares .*: choose a judge .*reward=judge, llm_co",
        ),
        (["reward=model", "reward.path=nowhere", "method=nash_md", "rounds=nash_md"], r"ModelReward scores one by one"),
        (["method=sppo", "rounds=sppo"], r"reward=none, and rounds.selector compares the responses .* pair by pair"),
        (["method=nash_md", "rounds=nash_md", "rounds.selector.judge=scores"], r"reward=none, and rounds.selector com"),
        (
            [*REWARD, "method=xpo", "rounds=xpo", "rounds.draws=[{source: policy, n: 2}]"],
            r"the selector compares the samples of two draws, and rounds.draws has one: add {source: reference}",
        ),
        (
            [*REWARD, "method=xpo", "rounds=xpo", "rounds.draws.1.source=policy"],
            r"rounds.draws.1.source=policy: .*: set rounds.draws.1.source=reference",
        ),
        ([*REWARD, "method=bco_udm", "rounds=cringe"], r"set method.density_ratio=null"),
        ([*REWARD, "rounds.draws.0.n=1"], r"rounds.draws gives 1 response a prompt, .*: set rounds.draws.0.n=2"),
        ([*REWARD, "rounds.draws.0.m=1"], r"rounds.draws.0.m is no option of a draw"),
        ([*REWARD, "rounds.selector.tie=keep"], r"(?s)tie.*ties"),
        ([*REWARD, "+rounds.minibatch=2"], r"(?s)minibatch.*minibatches"),
        ([*REWARD, "rounds.reference=last"], r"rounds.reference: expected one of initial, round_start"),
        (
            [*REWARD, "method=sft"],
            r"rounds.selector makes groups of kind preference, and this method learns from super",
        ),
        (
            ["reward=implicit", "reward.path=round_start", "reward.reference=previous_round"],
            r"compares previous_round with round_start, .* so every score is 0: set rounds\.parent=<folder",
        ),
        (
            ["reward=implicit", "reward.path=policy", "reward.reference=initial", "rounds.parent=x"],
            r"reward 'implicit' compares initial with policy, .*: let reward\.reference be another",
        ),
        (
            ["reward=implicit", "reward.path=policy", "reward.reference=policy"],
            r"reward=implicit compares policy with itself",
        ),
        ([*REWARD, "rounds.replay=1.0"], r"(?s)rounds.replay.*1"),
        ([*REWARD, "rounds.judge_pairs=4", "data.validation=null"], r"no validation data: set data.validation"),
        (
            [*REWARD, "method=sft", "rounds=raft", "rounds.judge_pairs=4"],
            r"rounds.judge_pairs=4 holds .*: set rounds.judge_pairs=0",
        ),
        ([*REWARD, "method=xpo", "rounds=xpo", "rounds.replay=0.5"], r"only drawn responses have: set rounds.replay=0"),
        ([*DICE, "rounds.parent=model"], r"rounds\.parent=model .* it starts as its model: name what the policy was"),
        (
            [*DICE, "rounds=none", "method=grpo"],
            r"reward 'implicit' compares with previous_round, round_start, which only a run with rounds has: choose",
        ),
        (
            [*REWARD, "method=sppo_soft"],
            r"this method reads win_probability of each group, and rounds.selector gives margin",
        ),
        ([*REWARD, "method=xpo"], r"this method reads reference_sample of each group, .*: choose another method"),
        (
            [*REWARD, "method=apo_zero_unpaired", "rounds.selector._target_=rlhf_lightning.selection.threshold"],
            r"this method reads desirable of each group, and rounds.selector gives no number",
        ),
        (
            [*REWARD, "+rounds.loss_options.betta=[0.1]"],
            r"(?s)rounds.loss_options.betta: method.loss has no real-valued option .* mean beta\?\n  options: beta$",
        ),
        (
            [*REWARD, "+rounds.loss_options.beta=[0.1,-5.0]"],
            r"rounds.loss_options.beta: loss dpo: beta=-5.0 is not allowed, it must be a number in \(0, inf\)",
        ),
        (
            [*REWARD, "method=pairwise_cringe", "+rounds.loss_options.k=[5]"],
            r"rounds.loss_options.k: method.loss has no real-valued option",
        ),
        ([*REWARD, "method=grpo"], r"this method learns from rollouts by itself: set rounds=none"),
        (
            [*REWARD, "method=simpo", "rounds.reference=round_start"],
            r"compares with no reference: set rounds.reference=",
        ),
        (
            [*REWARD, "reference=adapter_off", "rounds.reference=ema"],
            r"refreshes a copy of the policy, and reference=ad",
        ),
        (
            [
                *REWARD,
                "method=simpo",
                "rounds.draws=[{source: reference, n: 2}]",
                "rollout=vllm_server",
            ],
            r"rounds.draws.0: rollout=vllm_server cannot draw from source=reference, only from policy",
        ),
    ],
)
def test_refused_before_anything_is_drawn(options, message, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    server = ["rollout.url=http://127.0.0.1:9"] if "rollout=vllm_server" in options else []
    with pytest.raises(ValueError, match=message):
        make_run(compose("train", [*tiny, *ROUNDS, *options, *server, f"paths.output_dir={tmp_path}"]))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ([], "auto"),
        (["reference=cached"], "auto"),
        (["rounds.reference=previous_round"], "frozen"),
        (["method=simpo"], "none"),
        (["method=simpo", "rounds.draws=[{source: mixture, mix: 0.1, n: 2}]"], "auto"),
    ],
)
def test_the_reference_that_rounds_need_is_loaded(options, kind, tiny):
    cfg = compose("train", [*tiny, *ROUNDS, *options])
    assert reference_kind(cfg, make(cfg.method)) == kind


#: What the data has to be for a method to be validated on it: of Nash-MD lists of probabilities.
VALIDATES = {"nash_md": [f"data.spec.columns.score_{side}=win_{side}" for side in ("chosen", "rejected")]}


def check_run(name: str, options: list[str]) -> None:
    """A run up to its first draw, with a reward that does what the selector of these rounds asks for."""
    compares = ENTRIES[name].body["selector"].get("judge") == "matrix"
    options = [*options, "rounds.minibatches=1", "data.validation=0.5", *VALIDATES.get(name, [])]
    run = make_run(compose("train", [*options, *(COMPARES if compares else REWARD)]))
    run.data.setup("fit")
    check_inputs(run.data, run.module.needs, "fit")
    assert len(run.data.train_dataloader()) > 0
    assert run.data.lesson.kind == run.module.kind


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_every_file_of_rounds_makes_a_run_of_each_method_that_it_names(name, method, tiny, tmp_path):
    check_run(name, [*tiny, f"method={method}", f"rounds={name}", f"paths.output_dir={tmp_path}"])


#: Files without an experiment of their own, and the experiment that has the same paper's values.
IN_ANOTHER = {"iterative": "rlhflow", "pairwise_cringe": "iterative_cringe"}


def test_every_file_of_rounds_has_an_experiment():
    assert set(ENTRIES) - set(EXPERIMENTS.values()) == set(IN_ANOTHER)
    assert set(IN_ANOTHER.values()) <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_with_rounds_makes_a_run(name, tiny, tmp_path):
    """With the tests' model, data and reward in the place of the paper's."""
    check_run(EXPERIMENTS[name], [f"experiment={name}", *tiny, f"paths.output_dir={tmp_path}"])


def test_groups_of_validation_are_asked_for_what_the_loss_reads(tiny, tmp_path):
    """Before weights load: scores that are no probabilities would end the run at its first validation."""
    options = ["method=nash_md", "rounds=nash_md", "data.validation=0.5", f"paths.output_dir={tmp_path}"]
    run = make_run(compose("train", [*tiny, *options, *COMPARES]))
    run.data.setup("fit")
    with pytest.raises(ValueError, match=r"probability that each response beats one .*win_chosen and win_rejected"):
        check_inputs(run.data, run.module.needs, "fit")


def test_every_file_of_rounds_states_what_it_is():
    """Paper, command, the methods it goes with, an entry in METHODS.md."""
    page = (Path(__file__).parents[2] / "docs" / "methods" / "rounds.md").read_text()
    methods = {entry.name for entry in catalogue()}
    for name, entry in ENTRIES.items():
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", entry.header.paper), name
        assert f"rounds={name}" in entry.header.command
        assert entry.methods
        assert set(entry.methods) <= methods, name
        assert f"## Rounds: {name}\n" in page


def test_what_has_an_effect_is_not_named(tiny, tmp_path):
    cfg = compose(
        "train", [*tiny, *ROUNDS, *SMALL, *REWARD, "data.loading.num_workers=2", f"paths.output_dir={tmp_path}"]
    )
    run = make_run(cfg)
    (line,) = without_effect(cfg, run.module, run.data)
    assert line.startswith("data.loading.num_workers=2: rollouts are packed")


@pytest.mark.slow
def test_dice_from_the_command_line(rlhf, tiny, tmp_path):
    """From a DPO run's checkpoint: its model is the parent, losses begin at ln 2, half of the pairs are the data's."""
    common = [*tiny, "method=dpo", "optimizer.lr=1e-2", "data.batch_size=1", "trainer.max_epochs=-1"]
    code, _, err = rlhf("train", *common, "trainer.max_steps=2", "paths.output_dir=dpo")
    assert code == 0, err
    # A random model ends no response.
    selector = ["rounds=dice", "rounds.selector.least=2", "rounds.selector.cut_off=keep"]
    options = ["reward=dice", "rounds.parent=model", "rounds.reference=round_start", "rounds.replay=0.5", *SMALL]
    length = ["trainer.max_steps=4", "rounds.judge_pairs=2", "ckpt_path=dpo/checkpoints/last.ckpt"]
    run = [*common, *selector, *options, *length, "rollout.max_new_tokens=4", "paths.output_dir=run"]
    code, _, err = rlhf("train", *run)
    assert code == 0, err
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert [float(rows[at]["train/loss"]) for at in (0, 2)] == pytest.approx([0.693147] * 2, abs=1e-6)
    assert [float(rows[at]["train/round/replay_share"]) for at in (0, 2)] == [0.5, 0.5]
    assert all(0 <= float(rows[at]["train/judge/accuracy"]) <= 1 for at in (0, 2))
    scores = [json.loads(line)["score"] for line in (tmp_path / "run" / "rollouts" / "00000.jsonl").open()]
    assert any(scores), "the first round compares with what DPO started from"


def check_groups_train(rlhf, tiny, groups, rows):
    """A round's file is a data set of the tokens that were drawn."""
    made = [json.loads(line) for line in groups.open()]
    ids = {"chosen": [], "rejected": []}
    for row in rows:
        for slot in row["kept"]:
            ids[slot].append(row["ids"])
    assert [row["response_ids"] for row in made] == [list(pair) for pair in zip(*ids.values(), strict=True)]
    options = ["method=dpo", f"data.source.path={groups}", "data.validation=null", "data.batch_size=1"]
    code, _, err = rlhf("train", *tiny, *options, "trainer.max_steps=1", "paths.output_dir=offline")
    assert code == 0, err
    assert f"{len(made)} of {len(made)} rows kept" in err


def test_iterative_dpo_from_the_command_line(rlhf, tiny, tmp_path):
    """Rounds are drawn, scored, selected and written; validation is on the data's own pairs; a resume has all of it."""
    length = ["trainer.max_steps=4", "trainer.max_epochs=-1", "rounds.reference=round_start", "optimizer.lr=1e-2"]
    selector = ["rounds.selector.cut_off=keep"]  # a random model ends no response
    command = [*tiny, *ROUNDS, *SMALL, *selector, *REWARD, *length, "paths.output_dir=run"]
    code, _, err = rlhf("train", *command)
    assert code == 0, err
    folder = tmp_path / "run"
    rounds, groups = (sorted((folder / "rollouts").glob(files)) for files in ("*.jsonl", "groups/*.jsonl"))
    assert [file.name for file in rounds] == [file.name for file in groups] == ["00000.jsonl", "00001.jsonl"]
    rows = [json.loads(line) for line in rounds[0].open()]
    assert len(rows) == 2 * 4
    assert {kept for row in rows for kept in row["kept"]} == {"chosen", "rejected"}
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        chosen, rejected = (one, other) if one["kept"] == ["chosen"] else (other, one)
        assert chosen["score"] > rejected["score"] or not chosen["kept"]
    result = json.loads((folder / "result.json").read_text())["metrics"]
    assert result["train/select/tie_rate"] <= 1.0
    assert 0.0 <= result["val/reward/accuracy"] <= 1.0
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(losses) == 4
    assert losses[0] == losses[2] == pytest.approx(0.693147, abs=1e-6)
    code, _, err = rlhf("evaluate", "run=run", "paths.output_dir=scored", "callbacks.samples=null")
    assert code == 0, err
    check_groups_train(rlhf, tiny, groups[0], rows)
    metrics = json.loads((tmp_path / "scored" / "result.json").read_text())["metrics"]
    assert metrics["val/loss"] == pytest.approx(result["val/loss"], abs=1e-5)
