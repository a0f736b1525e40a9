"""evaluate, generate and data inspect, on what a run left and on nothing but a model."""

from __future__ import annotations

import json
import re

import pytest
import torch

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.results import Result
from rlhf_lightning.cli.train import train


@pytest.fixture
def run(tiny, tmp_path):
    """A LoRA run whose policy has clearly moved."""
    options = ["adapter=lora", "reference=adapter_off", "optimizer.lr=0.05", "scheduler=none"]
    folder = tmp_path / "run"
    train(compose("train", [*tiny, *options, f"paths.output_dir={folder}"]))
    return folder


def table(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(val/\S+) +(\S+)$", out, re.MULTILINE)}


def test_evaluate_repeats_the_runs_own_validation(rlhf, run):
    code, out, err = rlhf("evaluate", f"run={run}", "trainer=debug", "callbacks.samples=null", "paths.output_dir=eval")
    assert code == 0, err
    scores, logged = table(out), Result.read(run).metrics
    assert {"val/loss", "val/reward/accuracy", "val/reward/margin"} <= scores.keys()
    assert scores["val/loss"] == pytest.approx(logged["val/loss"], rel=1e-4)
    assert scores["val/loss"] != pytest.approx(0.6931, abs=1e-3), "the checkpoint was not loaded"


def test_evaluate_with_another_loss_and_data(rlhf, run, pairs, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(pairs.read_text().splitlines(keepends=True)[:4]))
    options = ["method=ipo", f"data.source.path={other}", "callbacks.samples=null", "trainer=debug"]
    code, out, err = rlhf("evaluate", f"run={run}", *options, "paths.output_dir=eval")
    assert code == 0, err
    assert "other.jsonl" in err
    assert table(out)["val/loss"] != pytest.approx(Result.read(run).metrics["val/loss"])


def test_evaluate_a_model_without_a_run(rlhf, tiny):
    code, out, err = rlhf("evaluate", *[o for o in tiny if not o.startswith("callbacks")], "callbacks.samples=null")
    assert code == 0, err
    assert table(out)["val/loss"] == pytest.approx(0.6931, abs=1e-4), "the policy is its own reference"


def test_evaluate_a_folder_that_is_no_run(rlhf):
    code, _, err = rlhf("evaluate", "run=nowhere")
    assert (code, err) == (
        2,
        "error: run=nowhere is not the folder of a run (no config.yaml): there is no such folder\n",
    )


def test_generate_uses_what_the_run_trained(rlhf, run, tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello\n\nWhat is 2, or 3?\n")
    options = ["prompts=prompts.txt", "max_new_tokens=6", "samples=2"]
    rows = []
    for name, source in {"trained": [f"run={run}"], "base": ["model=tiny_random"]}.items():
        code, _, err = rlhf("generate", *source, *options, f"output={name}.jsonl")
        assert code == 0, err
        rows.append([json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()])
    assert [row["prompt"] for row in rows[0]] == ["Hello"] * 2 + ["What is 2, or 3?"] * 2
    assert rows[0] != rows[1], "the checkpoint was not loaded"


def test_generate_from_an_adapter_that_is_on_some_blocks_only(rlhf, tiny, tmp_path):
    """Representation alignment adapts no block above those that it reads; the run does not report it."""
    options = ["method=representation_fit", "method.layers=[1]", "adapter=lora", "optimizer.lr=0.5"]
    train(compose("train", [*tiny, *options, f"paths.output_dir={tmp_path}/run"]))
    texts = []
    for source in (f"run={tmp_path}/run", "model=tiny_random"):
        code, out, err = rlhf("generate", source, "prompt=Hi, you?", "max_new_tokens=8", "temperature=0")
        assert code == 0, err
        texts.append(out)
    assert texts[0] != texts[1]


def test_generate_keeps_the_best_responses_as_a_data_set(rlhf, tmp_path):
    (tmp_path / "prompts.txt").write_text("Hello\nWhat is 2, or 3?\n")
    options = ["model=tiny_random", "prompts=prompts.txt", "max_new_tokens=12", "samples=6", "temperature=1.0"]
    rows = {}
    for keep in (6, 2):
        code, _, err = rlhf("generate", *options, f"keep={keep}", "reward=length", "reward.target=5", "output=a.jsonl")
        assert code == 0, err
        rows[keep] = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [len(rows[keep]) for keep in (6, 2)] == [12, 4]
    for start in (0, 6):
        scores = [row["score"] for row in rows[6][start : start + 6]]
        assert scores == sorted(scores, reverse=True), "the best ones come first"
        assert rows[2][start // 3 : start // 3 + 2] == rows[6][start : start + 2]
    code, _, err = rlhf("data", "inspect", "method=dpo", "model=tiny_random", "data=json", "data.source.path=a.jsonl")
    assert code == 0, err


def test_generate_keeps_nothing_without_a_reward(rlhf):
    code, _, err = rlhf("generate", "model=tiny_random", "prompt=Hi", "samples=4", "keep=1")
    assert code == 2
    assert "choose reward=" in err


def test_generate_is_reproducible(rlhf):
    first, second = (rlhf("generate", "model=tiny_random", "prompt=Hi, you?", "max_new_tokens=8") for _ in range(2))
    assert first[0] == 0
    assert first == second


def test_chat_reads_the_terminal(rlhf, monkeypatch):
    typed = iter(["hello", "", "/new", "again", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    code, _, err = rlhf("generate", "model=tiny_random", "max_new_tokens=3", "chat=true")
    assert code == 0, err
    assert list(typed) == ["never read"]


def test_a_checkpoint_of_another_model_is_refused(rlhf, run):
    code, _, err = rlhf("generate", f"run={run}", "model.hidden_size=32", "prompt=a")
    assert code != 0
    code, _, err = rlhf("generate", f"run={run}", "adapter=none", "prompt=a")
    assert code == 2
    assert "does not belong to this model and adapter" in err


def test_prompts_that_cannot_be_read(rlhf, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    code, _, err = rlhf("generate", "model=tiny_random", "prompts=p.jsonl")
    assert code == 2
    assert err == 'error: p.jsonl:2 has no text under "prompt", and no single turn of a user\n'


@pytest.mark.parametrize(
    ("turns", "read"),
    [
        ([{"role": "user", "content": "Hi?"}], True),
        ([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}], False),
    ],
)
def test_a_prompt_may_be_one_turn(rlhf, tmp_path, turns, read):
    """As data sets of pairs have it; more than one turn is refused, since nobody would see the others."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": turns}) + "\n")
    code, _, err = rlhf("generate", "model=tiny_random", "prompts=p.jsonl", "max_new_tokens=2", "output=o.jsonl")
    assert code == (0 if read else 2), err
    if read:
        assert json.loads((tmp_path / "o.jsonl").read_text())["prompt"] == "Hi?"


def test_inspect_shows_data_and_problems(rlhf, tmp_path):
    (tmp_path / "d.jsonl").write_text(
        '{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n'
        '{"prompt": "Why?", "chosen": "Same.", "rejected": "Same."}\n'
    )
    options = ["data=json", "data.source.path=d.jsonl", "model=tiny_random", "data.spec.cache=false"]
    code, out, err = rlhf("data", "inspect", *options)
    assert code == 0, err
    assert "1 of 2" in out
    assert "[[Because." in out
    assert re.search(r"d\.jsonl:2\s+chosen equals rejected", out)


def test_adapter_weights_are_what_generate_loads(run):
    from rlhf_lightning.cli.instantiate import make
    from rlhf_lightning.cli.runs import read_config, weights_of
    from rlhf_lightning.models.roles.builder import ModelBuilder
    from rlhf_lightning.models.roles.trained import load_trained

    cfg = read_config(run)
    actor = ModelBuilder(make(cfg.model), make(cfg.adapter), "none")().policy
    load_trained(weights_of(run), actor)
    saved = torch.load(weights_of(run), weights_only=True)["state_dict"]
    state = actor.state_dict()
    assert saved
    for name, value in saved.items():
        torch.testing.assert_close(state[name.removeprefix("policy.")], value)
