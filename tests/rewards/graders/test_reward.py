"""Graders as a reward: terms by name, failures counted, specs out of files, nothing that depends on the batch."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from rlhf_lightning import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.models.loading.tokenizers import byte_tokenizer, prepare_tokenizer
from rlhf_lightning.rewards import Composite, Reward, metrics_of, score_groups
from rlhf_lightning.rewards.graders import GraderReward
from rlhf_lightning.types import SampleGroup, sample_groups

TOKENIZER = prepare_tokenizer(byte_tokenizer())
EXACT = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
JSON = {**EXACT, "input": "{{ sample.output_json.answer }}"}
CODE = """
def grade(sample, item):
    while sample["output_text"] == "loop":
        pass
    return 1 / len(sample["output_text"])
"""
SPEC: dict[str, Any] = {
    "type": "multi",
    "pass_threshold": 0.5,
    "graders": {"exact": EXACT, "json": JSON, "code": {"type": "python", "source": CODE}},
    "calculate_output": "0.75 * exact + 0.25 * json",
}


def groups(*texts: list[str], answer: str = "4") -> list[SampleGroup]:
    def ids(text: str) -> list[int]:
        return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])

    responses = [[[*ids(text), TOKENIZER.eos_token_id] for text in group] for group in texts]
    return sample_groups([ids("2 + 2?")] * len(texts), responses, [{"answer": answer}] * len(texts))


@pytest.fixture
def reward() -> Any:
    made = GraderReward(TOKENIZER, spec=SPEC, limits={"cpu_seconds": 1})
    yield made
    made.close()


def test_terms_and_counts(reward: GraderReward, caplog: pytest.LogCaptureFixture):
    asked = groups(["4", '{"answer": 4}'], ["loop", ""], ["[4]"])
    with caplog.at_level(logging.WARNING):
        total, terms = score_groups(reward, asked)
    assert isinstance(reward, Reward)
    assert total == [[0.75, 0.25], [0.0, 0.0], [0.0]]
    assert terms["exact"] == [[1, 0], [0, 0], [0]]
    assert terms["json"] == [[0, 1], [0, 0], [0]]
    assert terms["code"] == [[1, pytest.approx(1 / 13)], [0, 0], [pytest.approx(1 / 3)]]
    assert terms["grader"] == total
    counts = metrics_of(reward)
    # Of 5 responses: loop ends by its time; the empty one divides by zero; loop, the empty one are no JSON; [4] and 4
    # are JSON without the field, which is an error.
    expected = {"timeouts": 0.2, "parse_failures": 0.4, "errors": 0.6, "passed": 0.2}
    expected |= {"code/timeouts": 0.2, "code/errors": 0.2, "json/parse_failures": 0.4, "json/errors": 0.4}
    assert counts == pytest.approx(expected)
    assert metrics_of(reward) == {}
    messages = [record.message for record in caplog.records if record.message.startswith("grader ")]
    assert len(messages) == 4, "each grader reports its first failure of each kind, and no other"


def test_one_response_is_one_failure():
    """The formula fails because a grader within it did: the response counts once."""
    inner = {"type": "multi", "graders": {"a": EXACT}, "calculate_output": "1 / a"}
    spec = {"type": "multi", "graders": {"inner": inner}, "calculate_output": "1 / inner"}
    reward = GraderReward(TOKENIZER, spec=spec)
    assert reward(groups(["4", "5"])) == [[1.0, 0.0]]
    assert metrics_of(reward) == {"errors": 0.5, "timeouts": 0.0, "parse_failures": 0.0, "inner/errors": 0.5}


def test_the_batch_does_not_matter(reward: GraderReward):
    asked = groups(["4", "five"], ['{"answer": "4"}'], ["44", "4 "])
    assert reward(asked) == [row for group in asked for row in reward([group])]


def test_an_empty_share_of_a_process_has_the_same_terms(reward: GraderReward):
    total, terms = score_groups(reward, [])
    assert total == []
    assert terms == {"grader": [], "exact": [], "json": [], "code": []}


def test_clip():
    spec = {"type": "multi", "graders": {"exact": EXACT}, "calculate_output": "4 * exact - 2"}
    assert GraderReward(TOKENIZER, spec=spec, clip=[0, 1])(groups(["4", "5"])) == [[1.0, 0.0]]
    assert GraderReward(TOKENIZER, spec=spec)(groups(["4", "5"])) == [[2.0, -2.0]]
    with pytest.raises(ValueError, match=r"reward\.clip"):
        GraderReward(TOKENIZER, spec=spec, clip=[1, 0])


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_specs_in_files(tmp_path: Path, suffix: str):
    file = tmp_path / f"grader.{suffix}"
    file.write_text(json.dumps(EXACT) if suffix == "json" else OmegaConf.to_yaml(EXACT))
    assert GraderReward(TOKENIZER, spec=str(file))(groups(["4", "5"])) == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "there is no such file"), ("[1, 2]", "must hold one mapping"), ("a: b: c", "neither JSON nor YAML")],
)
def test_files_that_are_refused(tmp_path: Path, text: str | None, message: str):
    file = tmp_path / "grader.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        GraderReward(TOKENIZER, spec=str(file))


def test_columns_are_checked_through_a_composite():
    whole = Composite(TOKENIZER, terms={"grader": GraderReward(TOKENIZER, spec=EXACT)})
    with pytest.raises(ValueError, match=r"Did you mean item\.answers"):
        whole.check_columns(["answers"])


def test_a_judge_nobody_gave():
    spec = {"type": "score_model", "input": [{"role": "user", "content": "Rate it."}]}
    reward = GraderReward(TOKENIZER, spec=spec)
    with pytest.raises(ValueError, match=r"score_model grader needs a model to ask: give it a server \(reward.judge"):
        reward(groups(["4"]))


def test_the_policy_judges():
    class Policy:
        def sample(self, prompts: list[list[int]], **options: Any) -> list[list[int]]:
            assert {**options, "streams": len(options["streams"])} == {
                "max_new_tokens": 512,
                "temperature": 0.0,
                "streams": len(prompts),
            }
            assert all("Rate it." in TOKENIZER.decode(prompt) for prompt in prompts)
            return [TOKENIZER(text)["input_ids"] for text in ('{"score": 0.5}', "well")]

    spec = {"type": "score_model", "input": [{"role": "user", "content": "Rate it."}]}
    reward = GraderReward(TOKENIZER, spec=spec)
    reward.policy = Policy()
    assert reward(groups(["4", "5"])) == [[0.5, 0.0]]
    assert metrics_of(reward) == {"errors": 0, "timeouts": 0, "parse_failures": 0.5}


def test_out_of_the_config_group(tmp_path: Path):
    (tmp_path / "grader.json").write_text(json.dumps(EXACT))
    for choice in (["reward=grader", f"reward.spec={tmp_path / 'grader.json'}"], ["reward=grader_match"]):
        cfg = compose("train", ["model=tiny_random", "data=gsm8k", *choice])
        reward = make(cfg.reward)(tokenizer=TOKENIZER)
        assert reward(groups(["4", "5"])) == [[1.0, 0.0]]


def test_a_misspelt_field_of_a_yaml():
    cfg = compose("train", ["model=tiny_random", "reward=grader_match", "reward.spec.calculate_output=exactly"])
    with pytest.raises(Exception, match="there is no grader 'exactly'"):
        make(cfg.reward)(tokenizer=TOKENIZER)
