"""Every method trains two steps from its yaml alone, and leaves a result and a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.targets import locate
from rlhf_lightning.cli.train import train
from rlhf_lightning.conf_dir import conf_dir

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
COLUMNS = "data.spec.columns={score_chosen: score_chosen, score_rejected: score_rejected}"

#: What a method needs beside pairs of responses.
OPTIONS = {
    "context_distillation": ["data.spec.context=Answer like a teacher of mathematics."],
    "grpo_process": ["reward=none", "+reward._target_=tests.helpers.online.LetterSteps", "+reward._partial_=true"],
    "ppo_lagrangian": ["reward=none", "+reward._target_=tests.helpers.online.LettersAndCost", "+reward._partial_=true"],
    "rft": [
        "reward=none",
        "method.credit.reward.spec={type: text_similarity, evaluation_metric: fuzzy_match, "
        'input: "{{ sample.output_text }}", reference: "{{ item.chosen }}", name: alike}',
    ],
    "representation_fit": ["adapter=lora"],
    "lorra": ["adapter=lora", "data.spec.context_position=behind"],
    "rahf_dual": ["adapter=lora", "reference=teacher", "model@reference.source=tiny_random", "reference.source.seed=1"],
    "knowledge_distillation": ["reference=teacher", "model@reference.source=tiny_random", "reference.source.seed=1"],
}
#: A reward that tells random bytes apart, and what else every on-policy method needs here: small rollouts.
REWARD = ["reward=function", "reward.target=tests.helpers.online.letters"]
ONLINE = [
    "allow_targets=[tests]",
    "rollout.max_new_tokens=8",
    "method.rollout.minibatches=1",
    "optimizer.lr=1e-2",
]
#: Rows of methods that do not eat pairs.
OTHER_ROWS = {
    "coin": [
        {
            "instruction": f"What is {a} plus {a}?",
            "paraphrase": f"Add {a} to {a}.",
            "output": f"{2 * a}",
            "negative_instruction": f"What is {a} minus {a}?",
            "negative_paraphrase": f"Subtract {a} from {a}.",
            "negative_output": "0",
        }
        for a in range(8)
    ],
    "cost": [
        {
            "prompt": f"How do I open a locked door, the {a}th?",
            "chosen": "Ask a locksmith.",
            "rejected": f"Kick it {a} times.",
            "chosen_safe": True,
            "rejected_safe": a % 2 == 0,
        }
        for a in range(8)
    ],
    "process_reward": [
        {"prompt": f"Double {a}.", "steps": [f"Take {a} twice.", f"That is {2 * a}."], "labels": [True, a % 2 == 0]}
        for a in range(8)
    ],
    "nash_md": [
        {
            "prompt": f"What is {a} plus {a}?",
            "responses": [f"It is {2 * a}.", f"I think it is {a}{a}."],
            "scores": [0.9, 0.1],
        }
        for a in range(8)
    ],
    "attribute_regression": [
        {
            "prompt": f"What is {a} plus {a}?",
            "response": f"{2 * a}",
            "attributes": dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), a % 5),
        }
        for a in range(8)
    ],
}


def rated_model(folder: Path) -> list[str]:
    """A model with five heads, as the export of the first stage of ArmoRM."""
    from rlhf_lightning.models.export.classification import export_scorer
    from rlhf_lightning.models.scorers.scorer import Scorer
    from rlhf_lightning.models.sources import TinyRandom

    export_scorer(Scorer(TinyRandom().load(), outputs=5), TinyRandom().tokenizer(), folder)
    return ["model=hub", f"model.name={folder}"]


def initial_weights() -> dict[str, torch.Tensor]:
    from rlhf_lightning.models.sources import TinyRandom

    return TinyRandom().load().state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_method_fits_two_steps(method, tiny, tmp_path):
    half = "data.validation=0.5"  # KTO needs two prompts in validation as well
    options = [*tiny, half, f"paths.output_dir={tmp_path}", "optimizer.lr=1e-3"]
    if method in OTHER_ROWS:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in OTHER_ROWS[method]))
        options.append(f"data.source.path={tmp_path}/rows.jsonl")
    if method == "armorm":
        options += rated_model(tmp_path / "stage1")
    module: Any = locate(yaml.safe_load((conf_dir() / "method" / f"{method}.yaml").read_text())["_target_"])
    online = module.kind == "prompt"
    options += [*(ONLINE if online else ()), *OPTIONS.get(method, REWARD if online else ())]
    assert train(compose("train", [f"method={method}", *options])) is None
    result = Result.read(tmp_path)
    assert (result.status, result.steps) == ("done", 2)
    assert math.isfinite(result.metrics["train/loss"])
    assert math.isfinite(result.metrics[module.monitor[0]])
    trained = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    initial = initial_weights()
    last = ("lm_head.weight", "model.norm.weight")  # a reward model has no head over the vocabulary
    shared = {key: value for key in last for name, value in trained.items() if name.endswith(key)}
    heads = {"policy.head.weight", "policy.gate.0.weight"}
    adapter = any(value.any() for name, value in trained.items() if "lora_B" in name)
    assert shared or heads & trained.keys() or adapter, "neither a trunk nor a head nor an adapter was trained"
    assert all(not torch.equal(value, initial[key]) for key, value in shared.items()), "nothing was learnt"


def test_the_optimized_metric_is_returned(tiny, tmp_path):
    cfg = compose("train", [*tiny, f"paths.output_dir={tmp_path}", "optimized_metric=val/loss"])
    assert train(cfg) == Result.read(tmp_path).metrics["val/loss"]


def test_an_optimized_metric_that_nobody_logs(tiny, tmp_path):
    cfg = compose("train", [*tiny, f"paths.output_dir={tmp_path}", "optimized_metric=val/los"])
    with pytest.raises(ValueError, match=r"optimized_metric=val/los was not logged\. Did you mean val/loss\?"):
        train(cfg)


def test_a_metric_that_no_validation_logs_ends_the_run_at_the_first_one(tiny, tmp_path):
    often = ["trainer.max_steps=6", "trainer.max_epochs=-1", "trainer.val_check_interval=1"]
    cfg = compose("train", [*tiny, *often, f"paths.output_dir={tmp_path}", "optimized_metric=val/los"])
    with pytest.raises(ValueError, match=r"optimized_metric=val/los was not logged\. Did you mean val/loss\?"):
        train(cfg)
    assert Result.read(tmp_path).steps == 1


def test_a_loss_without_reference_loads_none_unless_asked_for_a_copy(tiny, tmp_path):
    from rlhf_lightning.cli.build import make_run

    for chosen, loaded in (("auto", "none"), ("cached", "none"), ("frozen", "frozen")):
        options = ["method=simpo", f"reference={chosen}", *tiny, f"paths.output_dir={tmp_path}"]
        assert make_run(compose("train", options)).models.reference == loaded


def test_the_same_command_resumes(tiny, tmp_path):
    options = [*tiny, f"paths.output_dir={tmp_path}", "trainer.max_epochs=5"]
    train(compose("train", options))
    before = (tmp_path / "metrics.csv").read_text().splitlines()
    train(compose("train", [*options, "trainer.max_steps=4"]))
    after = (tmp_path / "metrics.csv").read_text().splitlines()
    assert Result.read(tmp_path).steps == 4
    assert after[: len(before)] == before
    assert len(after) > len(before)


def test_nothing_left_to_do_keeps_the_result(tiny, tmp_path):
    options = [*tiny, f"paths.output_dir={tmp_path}", "optimized_metric=val/loss"]
    first = train(compose("train", options))
    assert train(compose("train", options)) == first


@pytest.mark.parametrize("wanted", ["last", "nowhere.ckpt"])
def test_a_checkpoint_that_is_not_there(wanted, tiny, tmp_path):
    cfg = compose("train", [*tiny, f"paths.output_dir={tmp_path}", f"ckpt_path={wanted}"])
    with pytest.raises(ValueError, match=rf"ckpt_path={wanted}"):
        train(cfg)


def test_a_cached_reference_trains_like_a_frozen_one(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    losses = []
    for name, options in {
        "frozen": [],
        "cached": ["reference=cached"],
        "again": ["reference=cached", "seed=42"],
    }.items():
        folder = tmp_path / name
        train(compose("train", [*tiny, *options, f"paths.output_dir={folder}", "optimizer.lr=1e-3"]))
        losses.append(Result.read(folder).metrics["train/loss"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    shards = list((tmp_path / "cache" / "reference").rglob("*.safetensors"))
    assert len(shards) == 1, "the second run found everything"


def test_a_critic_may_be_given_an_adapter():
    """Refused once as something that may not be made there."""
    options = ["method=ppo", "adapter=lora", "method.critic.kind=adapter", "+adapter@method.critic.adapter=lora"]
    cfg = compose("train", [*options, "method.critic.adapter.r=3", "reward=length", "model=tiny_random", "data=tiny"])
    assert cfg.method.critic.adapter.r == 3
