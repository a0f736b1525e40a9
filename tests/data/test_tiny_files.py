"""The tiny world's files that ship with the package are what its grammar says."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.data.sources.files import PACKAGED_FOLDER
from rlhf_lightning.prompting import InContext, Rules
from rlhf_lightning.world import grammar
from rlhf_lightning.world.gold import judge
from rlhf_lightning.world.kinds import asked


def test_questions_are_those_held_out():
    rows = [json.loads(line) for line in (PACKAGED_FOLDER / "tiny_questions.jsonl").read_text().splitlines()]
    assert rows == [asked(prompt) for prompt in grammar.prompts("validation")]


def test_examples_are_the_best_responses_to_training_questions():
    by_text = {prompt.text: prompt for prompt in grammar.prompts("train")}
    rows = [json.loads(line) for line in (PACKAGED_FOLDER / "tiny_examples.jsonl").read_text().splitlines()]
    assert [judge(by_text[row["query"]], row["answer"].split()).reward for row in rows] == [4.0] * 3
    InContext(examples=3, file=str(PACKAGED_FOLDER / "tiny_examples.jsonl"))


def test_the_rule_of_a_question_is_about_its_subject():
    rules = Rules(str(PACKAGED_FOLDER / "tiny_facts.txt"), top_k=1, max_tokens=None)
    for prompt in grammar.prompts():
        (rule,) = rules.listed(prompt.text)
        assert prompt.subject in rule.split()
        if prompt.topic == "fact":
            assert grammar.truth(prompt, prompt.asked[0]) in rule.split()


def test_a_yaml_names_them_by_name():
    cfg = compose("generate", ["prompts=${rlhf.packaged:tiny_questions.jsonl}"], check=False)
    assert cfg.prompts == str(PACKAGED_FOLDER / "tiny_questions.jsonl")
    with pytest.raises(ConfigError, match=r"rlhf\.packaged:tiny_question\.jsonl.*Did you mean tiny_questions\.jsonl"):
        compose("generate", ["prompts=${rlhf.packaged:tiny_question.jsonl}"])
