"""``rlhf generate`` and ``rlhf evaluate`` with every file of conf/reward; what generate refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.conf_dir import conf_dir
from rlhf_lightning.data import DataSpec
from rlhf_lightning.models.roles.builder import ModelBuilder
from rlhf_lightning.models.sources import TinyRandom

FILES = sorted((conf_dir() / "reward").glob("*.yaml"))
SHORT = ["model=tiny_random", "device=cpu", "max_new_tokens=3", "temperature=1.0", "batch_size=4"]
TWO = [{"prompt": "What is 1 + 1?", "answer": "2"}, {"prompt": "What is 2 + 2?", "answer": "4"}]


def unset(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Values that a file leaves to the user."""
    for name, value in node.items():
        if value == "???":
            yield f"{prefix}.{name}=given"
        elif isinstance(value, dict):
            yield from unset(value, f"{prefix}.{name}")


@pytest.mark.parametrize("command", ["generate", "evaluate", "train"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reward_composes_with_every_command(file: Path, command: str) -> None:
    given = list(unset(yaml.safe_load(file.read_text()), "reward"))
    if file.stem == "cost":  # a model's file with other values
        given = ["reward.path=given"]
    if file.stem == "function":
        given = ["reward.target=operator.eq", "allow_targets=[_operator,operator]"]
    made = make(compose(command, [f"reward={file.stem}", *given]).reward)
    assert (made is None) == (file.stem == "none")


@pytest.mark.parametrize("name", ["judge", "process"])
@pytest.mark.parametrize(("command", "key"), [("generate", "spec"), ("train", "data.spec"), ("evaluate", "data.spec")])
def test_a_model_that_reads_text_has_the_commands_spec(name: str, command: str, key: str) -> None:
    """Options of how prompts are rendered are ``spec`` in one command and ``data.spec`` in the others."""
    made = make(compose(command, [f"reward={name}", "reward.path=given", f"{key}.step_separator=END"]).reward)
    assert isinstance(made.keywords["spec"], DataSpec)
    assert made.keywords["spec"].step_separator == "END"


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TWO))
    return "prompts=prompts.jsonl"


def test_a_judge_scores_responses(rlhf, tmp_path: Path, prompts: str) -> None:
    """Scores of a tournament of two add up to one."""
    models = ModelBuilder(TinyRandom(), None, "none")()
    models.policy.model.save_pretrained(tmp_path / "judge")
    models.tokenizer.save_pretrained(tmp_path / "judge")
    options = [prompts, "samples=2", "output=out.jsonl", "reward=judge", f"reward.path={tmp_path / 'judge'}"]
    code, _, err = rlhf("generate", *SHORT, *options)
    assert code == 0, err
    scores = [json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(scores) == 4
    assert scores[0] + scores[1] == pytest.approx(1.0)
    assert scores[2] + scores[3] == pytest.approx(1.0)


def test_a_model_rates_its_own_responses(rlhf, prompts: str) -> None:
    """Without a server the model that responded is the judge; a random one gives no rating, which is reported."""
    judge = ["reward=llm_judge", "reward.judge=null", "reward.writing.max_tokens=3"]
    code, _, err = rlhf("generate", *SHORT, prompts, *judge)
    assert code == 0, err
    assert "could not judge 2 of 2 responses" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["reward=judge", "reward.path=/nowhere"], r"nowhere"),
        (["reward=llm_compare", "reward.judge.url=x"], "at least 2 of them, but samples=1: set samples=2"),
        (["reward=exact_match", "reward.column=anser"], "needs the column 'anser' of the data, which has: answer"),
        (["reward=length", "chat=true"], "reward=... scores responses to prompt=TEXT or prompts=FILE"),
    ],
)  # fmt: skip
def test_what_generate_refuses_before_weights_load(
    options: list[str], message: str, rlhf, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_lightning.models.sources.TinyRandom.load", None)
    code, _, err = rlhf("generate", *SHORT, prompts, *options)
    assert code == 2, err
    assert message in " ".join(err.split())
