"""Problems of reasoning-gym: each once, split by their questions, with the columns that their verifier needs."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("reasoning_gym", reason="needs reasoning-gym, the extra reasoning")

from omegaconf import OmegaConf

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.data import ReasoningGym
from rlhf_lightning.data.rows.problems import DataError
from rlhf_lightning.data.sources.base import Source
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers import tokenizers

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


def questions(**options) -> list[str]:
    return [row.values["question"] for row in ReasoningGym("basic_arithmetic", config=SMALL, **options).rows()]


def test_rows_are_a_function_of_the_options():
    assert isinstance(ReasoningGym("chain_sum"), Source)
    assert questions(size=50) == questions(size=50) == questions(size=80)[:50]
    assert questions(size=50) != questions(size=50, seed=9)


def test_no_question_is_asked_twice_or_in_both_splits_whatever_the_seeds():
    """The library's seeds do not ensure that: problem i of seed s is problem 0 of seed s + i."""
    train, validation = questions(size=600), questions(size=60, split="validation", seed=1)
    assert len(set(train)) == 600
    assert len(set(validation)) == 60
    assert not set(train) & set(validation)
    assert set(validation) & set(questions(size=60, split="validation", seed=2))  # the share is of the questions


def test_a_row_has_what_its_verifier_needs():
    import reasoning_gym

    for row in ReasoningGym("basic_arithmetic", 20, config=SMALL, prompt="{question} Say {number}.").rows():
        values = row.values
        assert set(values) == {"prompt", "question", "answer", "dataset", "entry"}
        assert values["prompt"] == f"{values['question']} Say {{number}}."
        entry = json.loads(values["entry"])
        verify = reasoning_gym.get_score_answer_fn(values["dataset"])
        assert verify(values["answer"], entry) == 1.0
        assert verify(str(int(values["answer"]) + 1), entry) < 1.0
        assert entry["metadata"]["source_index"] == row.number - 1


def test_the_library_gets_plain_containers():
    """Its classes compare and copy their options, which OmegaConf's containers do not allow everywhere."""
    config = OmegaConf.create({**SMALL, "operators": ["+", "-"]})
    source = ReasoningGym("basic_arithmetic", 5, config=config)
    assert [type(source.config), type(source.config["operators"])] == [dict, list]
    assert source.config == {**SMALL, "operators": ["+", "-"]}
    assert not any({"*", "/"} & set(row.values["question"]) for row in source.rows())


def test_fingerprint_covers_the_options():
    changes = [{}, {"size": 9}, {"split": "validation"}, {"held_out": 0.2}, {"seed": 1}, {"prompt": "{question}!"}]
    sources = [ReasoningGym("basic_arithmetic", **change) for change in [*changes, {"config": SMALL}]]
    sources.append(ReasoningGym("chain_sum"))
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert sources[0].fingerprint() == ReasoningGym("basic_arithmetic").fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "basic_arithmetics"}, "data.source.dataset='basic_arithmetics'.*not registered"),
        ({"config": {"max_trms": 2}}, "'max_trms'"),
        ({"config": {"min_terms": 5, "max_terms": 2}}, "max_terms must be >= min_terms"),
        ({"split": "test"}, "split='test'"),
        ({"size": 0}, "size=0"),
        ({"held_out": 1.0}, r"held_out=1\.0"),
        ({"prompt": "solve"}, r"must contain \{question\}"),
        ({"dataset": "rearc"}, "choose another task"),  # its verifier compares tuples
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(DataError, match=message):
        ReasoningGym(**{"dataset": "basic_arithmetic", **options})


def test_a_task_with_too_few_problems_is_refused():
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "operators": ["+"]}
    with pytest.raises(
        DataError, match=r"draws gave \d+ different problems of the split, fewer than data.source.size=5000"
    ):
        list(ReasoningGym("basic_arithmetic", 5000, config={**few, "allow_negation": False}).rows())


def test_the_yaml_gives_both_splits_as_prompts():
    data = compose("data", ["data=reasoning_gym", "data.source.size=40", "data.source.config={max_terms:2}"]).data
    parts = []
    for source in (make(data.source), make(data.validation)):
        data_set = tokenize(source, tokenizers.qwen_like(), DataSpec(cache=False, template="tokenizer"), "prompt")
        data_set.report.enforce(DataSpec())
        parts.append([data_set.examples.columns_of(group) for group in range(len(data_set.examples))])
    assert list(map(len, parts)) == [40, 100]
    assert all(row["prompt"] == [{"role": "user", "content": row["question"]}] for part in parts for row in part)
    assert {len(json.loads(row["entry"])["metadata"]["difficulty"]) for row in parts[0]} == {2}
    assert not {row["question"] for row in parts[0]} & {row["question"] for row in parts[1]}


def test_it_serves_imitation_too():
    """``method=sft``: the gold answer is the response."""
    data = compose("data", ["data=reasoning_gym", "data.source.size=5", "data.spec.cache=false"]).data
    tokenizer = tokenizers.qwen_like()
    examples = tokenize(make(data.source), tokenizer, make(data.spec), "supervised").examples
    gold_answers = [row.values["answer"] for row in make(data.source).rows()]
    responses = [tokenizer.decode(example.responses[0], skip_special_tokens=True) for example in examples]
    assert responses == gold_answers
