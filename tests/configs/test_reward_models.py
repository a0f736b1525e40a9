"""A reward model from the command line: trained, exported, evaluated by both ways, and scoring a policy."""

from __future__ import annotations

import json
import re

import pytest

from rlhf_lightning.cli.results import Result


@pytest.fixture
def trained(rlhf, tiny, tmp_path):
    """A reward model of a few steps with measured normalisation, and where its export is."""
    kept = [option for option in tiny if not option.startswith("callbacks.export")]
    options = ["method=bradley_terry", "method.normalize=standard", "optimizer.lr=1e-3", "adapter=lora"]
    code, _, err = rlhf("train", *kept, *options, "paths.output_dir=rm", "callbacks.export.form=merged")
    assert code == 0, err
    assert "scores are normalised" in err
    return tmp_path / "rm"


def table(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(val/\S+) +(\S+)$", out, re.MULTILINE)}


def test_two_ways_to_evaluate_agree(rlhf, tiny, trained, tmp_path):
    """The checkpoint in the module, and the exported folder as a reward: one loads PEFT layers, one merged weights."""
    code, out, err = rlhf("evaluate", f"run={trained}", "trainer=debug", "paths.output_dir=one")
    assert code == 0, err
    module = table(out)
    path = trained / "export" / "last"
    lean = [option for option in tiny if not option.startswith("callbacks")]
    code, out, err = rlhf(
        "evaluate", "method=bradley_terry", *lean, "reward=model", f"reward.path={path}", "reward.normalize=false",
        "paths.output_dir=two",
    )  # fmt: skip
    assert code == 0, err
    reward = table(out)
    for name in ("accuracy", "margin", "log_loss", "calibration_error", "mean", "std", "min", "max"):
        assert reward[f"val/reward/{name}"] == pytest.approx(module[f"val/reward/{name}"], abs=1e-4), name
    assert module["val/loss"] == pytest.approx(reward["val/reward/log_loss"], abs=1e-4)
    saved = Result.read(tmp_path / "two")
    assert saved is not None
    assert saved.metrics["val/reward/length_spearman"] == pytest.approx(reward["val/reward/length_spearman"], abs=1e-4)


def test_a_policy_is_scored_by_a_reward(rlhf, tiny, trained, tmp_path):
    lean = [option for option in tiny if not option.startswith("callbacks")]
    reward = ["reward=model", f"reward.path={trained / 'export' / 'last'}"]
    samples = ["callbacks.samples.max_new_tokens=4", "callbacks.samples.prompts=2"]
    code, out, err = rlhf("evaluate", "method=simpo", *lean, *reward, *samples, "paths.output_dir=scored")
    assert code == 0, err
    metrics = table(out)
    rows = [json.loads(line) for file in (tmp_path / "scored" / "samples").glob("*.jsonl") for line in file.open()]
    assert metrics["val/sample/reward"] == pytest.approx(sum(row["reward"] for row in rows) / len(rows), abs=1e-4)
    assert 0 <= metrics["val/sample/win_rate"] <= 1
    assert metrics["val/sample/data_reward"] != metrics["val/sample/reward"]


def test_a_reward_model_is_trained_from_its_export(rlhf, tiny, trained):
    model = ["model=hub", f"model.name={trained / 'export' / 'last'}"]
    options = [option for option in tiny if not option.startswith("model")]
    code, _, err = rlhf("train", "method=bradley_terry", *options, *model, "paths.output_dir=more")
    assert code == 0, err
    code, _, err = rlhf("train", "method=dpo", "reference=none", *options, *model, "paths.output_dir=no")
    assert code != 0


def test_a_reward_that_nothing_uses_is_refused(rlhf, tiny):
    code, _, err = rlhf("train", "method=dpo", *tiny, "reward=length")
    assert code == 2
    assert "callbacks.samples" in err


@pytest.mark.slow
def test_lists_and_costs(rlhf, tiny, tmp_path):
    rows = [
        {"prompt": f"Name {n}.", "responses": ["One.", "Two of them.", "Three, as asked."], "scores": [n, 1.0, 1.0]}
        for n in range(2, 8)
    ]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=json", "data.source.path=lists.jsonl", "data.validation=0.4", "data.batch_size=2"]
    lists = ["model=tiny_random", "trainer=debug", *data, "data.spec.cache=false"]
    code, out, err = rlhf("evaluate", "method=k_wise", *lists, "reward=length", "reward.per_token=1.0")
    assert code == 0, err
    # "One." is the best of every list and the shortest: length is always wrong, and every margin negative
    assert table(out)["val/reward/accuracy"] == 0.0
    assert table(out)["val/reward/length_spearman"] == pytest.approx(1.0, abs=1e-4)
    code, _, err = rlhf("train", "method=best_of_k", *lists, "callbacks.samples=null", "callbacks.export=null")
    assert code == 0, err


def test_a_method_of_single_responses_is_asked_about_pairs(rlhf, tiny):
    lean = [option for option in tiny if not option.startswith(("trainer", "callbacks", "logger"))]
    code, out, err = rlhf("evaluate", "method=process_reward", *lean, "reward=length", "reward.per_token=1.0")
    assert code == 0, err
    assert "val/reward/accuracy" in out
