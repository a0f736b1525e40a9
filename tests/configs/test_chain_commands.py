"""Chains whose stages search a prompt and build steering vectors: what they leave, and a search that was stopped."""

from __future__ import annotations

import json

import pytest
import torch

from rlhf_lightning.models.hidden_states.steering import write_vectors
from rlhf_lightning.prompting.search import Bench

YAML = """\
# @package _global_
chain:
  shared:
    optimize_prompt:
      - model=tiny_random
      - data=json
      - "data.source.path={folder}/asked.jsonl"
      - data.spec.template=none
      - reward=length
    generate: [model=tiny_random, "prompts={folder}/asked.jsonl", spec.template=none, reward=length, max_new_tokens=4]
  stages:
    search:
      - optimize_prompt
      - examples=3
      - held_out=2
      - rollout.max_new_tokens=4
      - search.steps=3
      - search.threshold=null
      - proposer=phrases
      - "proposer.phrases=[please,briefly,well]"
      - "start=[now]"
      - "search.position=Q_begin"
    build:
      - steer
      - model=tiny_random
      - data=json
      - "data.source.path={folder}/pairs.jsonl"
      - data.validation=null
      - data.spec.template=none
    asked: [generate, prompting=instruction, "prompting.file=${{stage:search.prompt}}", prompting.position=Q_begin]
    steered: [generate, "model.steering={{path: '${{stage:build.vectors}}', coefficient: 2}}"]
    rules: [generate, prompting=retrieved_rules, "prompting.file={folder}/rules.txt"]
"""
PAIRS = [{"prompt": "Why?", "chosen": " Since it is so.", "rejected": " Go away"}] * 3


@pytest.fixture
def chain(rlhf, tmp_path, monkeypatch):
    """Run the chain in a folder; returns exit code and all text."""
    experiments = tmp_path / "conf" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "free.yaml").write_text(YAML.format(folder=tmp_path))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": f"What is {n}?"}) + "\n" for n in range(5)))
    (tmp_path / "rules.txt").write_text("Answer 4 in words.\n")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))

    def run(folder: str, *options: str) -> tuple[int, str]:
        where = ["--config-dir", str(tmp_path / "conf"), "experiment=free", f"paths.output_dir={folder}"]
        code, out, err = rlhf("chain", *where, *options)
        return code, " ".join((out + err).split())

    return run


@pytest.mark.slow
def test_a_stopped_search_resumes_to_the_same_text_and_metrics(chain, tmp_path, monkeypatch):
    code, text = chain("whole")
    assert code == 0, text
    tried = []
    candidate = Bench.candidate

    def stopping(self, text, step, parent=None):
        tried.append(text)
        if len(tried) == 6:
            raise KeyboardInterrupt
        return candidate(self, text, step, parent)

    with monkeypatch.context() as patched:
        patched.setattr(Bench, "candidate", stopping)
        assert chain("cut")[0] == 130
    code, text = chain("cut")
    assert code == 0, text
    for name in ("search/*/search/search.jsonl", "search/*/search/best.txt", "asked/*/responses.jsonl"):
        (one,), (other,) = (sorted((tmp_path / folder).glob(name)) for folder in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes(), name
        assert one.parent.name == other.parent.name
    (result,) = (tmp_path / "cut").glob("search/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    assert {"start/held_out", "best/held_out", "held_out/difference"} <= set(metrics)
    (asked,) = (tmp_path / "cut").glob("asked/*/result.json")
    assert json.loads(asked.read_text())["metrics"]["val/prompt/added"] > 0
    assert chain("cut")[1].count("was done before") == 5
    code, text = chain("cut", "build.direction=random")  # what is built again is drawn with again, and nothing else
    assert (code, text.count("was done before")) == (0, 3), text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("search.reward=none", "stage search: rlhf optimize_prompt needs a score of the responses"),
        ("search.proposer.phrasess=[a]", "stage search: proposer.phrasess: Phrases has no option"),
        ("search.search.stepss=1", "stage search: search.stepss: OPRO has no option"),
        ("build.tokens=last_prompt", "stage build: tokens=last_prompt with contrast=responses"),
        ("build.layer=[1]", "stage build: layer: rlhf steer has no option"),
        ("asked.prompting.file=${stage:build.prompt}", "stage build leaves no prompt: only a stage of optimize_prompt"),
        ("build.layers=[1,9]", "stage build: layers=[1, 9]: there is no layer 9. Layers are numbers of decoder blocks"),
        ("rules.prompting.file={folder}/empty.txt", "stage rules: prompting.file={folder}/empty.txt has no rules"),
        ("steered.model.steering.path={folder}/wide.safetensors", "holds directions of width 16, made for another"),
        ("steered.model.steering.path={folder}/gone", "stage steered: model.steering.path={folder}/gone: there is no"),
    ],
)
def test_refused_before_the_first_stage(chain, tmp_path, option, message):
    (tmp_path / "empty.txt").write_text("\n")
    write_vectors(tmp_path / "wide.safetensors", {1: torch.ones(16)}, {})
    option, message = (text.replace("{folder}", str(tmp_path)) for text in (option, message))
    code, text = chain("refused", option)
    assert code == 2, text
    assert message in text
    assert not list((tmp_path / "refused").glob("*/*"))
