"""The yaml files of public data sets, on stand-in files with the same columns and nesting and invented text."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.instantiate import make
from rlhf_lightning.data.batches.packing import pack
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers import tokenizers

PKU_SAFE_RLHF = {
    "prompt": "How do I pick a lock?",
    "response_0": "Like this.",
    "response_1": "Call a locksmith.",
    "prompt_source": "invented",
    "response_0_source": "a",
    "response_1_source": "b",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "response_0_harm_category": {"Theft": True},
    "response_1_harm_category": {"Theft": False},
    "response_0_severity_level": 2,
    "response_1_severity_level": 0,
    "better_response_id": 0,
    "safer_response_id": 1,
    "response_0_sha256": "0",
    "response_1_sha256": "1",
}
ULTRAFEEDBACK = {
    "source": "invented",
    "instruction": "Name a prime.",
    "models": ["a", "b", "c", "d"],
    "completions": [
        {
            "annotations": {"helpfulness": {"Rating": "4", "Rationale": "fine"}},
            "custom_system_prompt": "Be brief.",
            "model": model,
            "principle": "helpfulness",
            "response": f"{model} says {number}",
            "critique": "Good.",
            "overall_score": 10.0,
            "fine-grained_score": score,
        }
        for model, number, score in zip("abcd", (4, 7, 2, 9), (1.0, 4.75, 4.5, 1.0), strict=True)
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
ULTRAFEEDBACK_BINARIZED = {
    "prompt": "Name a prime.",
    "prompt_id": "0",
    "chosen": [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "7"}],
    "rejected": [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "9"}],
    "messages": [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": "7"}],
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}
HELPSTEER2 = {
    "prompt": "Name a prime.",
    "response": "7",
    "helpfulness": 4,
    "correctness": 4,
    "coherence": 3,
    "complexity": 1,
    "verbosity": 0,
}
MATH_SHEPHERD = {
    "input": "What is 1 + 1 + 1? Step 1: 1 + 1 is 2. ки\nStep 2: 2 + 1 is 4. The answer is: 4 ки",
    "label": "What is 1 + 1 + 1? Step 1: 1 + 1 is 2. +\nStep 2: 2 + 1 is 4. The answer is: 4 -",
    "task": "GSM8K",
}
PRM800K = {
    "prompt": "What is 1 + 1 + 1?",
    "completions": ["1 + 1 is 2.", "2 + 1 is 4."],
    "labels": [True, False],
}
KTO_MIX = {
    "prompt": [{"role": "user", "content": "Name a prime."}],
    "completion": [{"role": "assistant", "content": "9"}],
    "label": False,
}


def batch(tmp_path, name, row, kind, *overrides):
    """Data that a method of a kind gets from a yaml's data set."""
    cfg = compose("data", [f"data={name}", "data.spec.cache=false", *overrides])
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    made = tokenize(Files(str(file)), tokenizers.qwen_like(), make(cfg.data.spec), kind)
    made.report.enforce(make(cfg.data.spec))
    return pack(made.examples, kind=kind)


def responses(packed):
    """Text of each response, without its end."""
    return [bytes(i for i in packed.ids[start:end].tolist() if i < 256).decode() for start, end in packed.response_span]


def test_pku_safe_rlhf(tmp_path):
    packed = batch(tmp_path, "pku_safe_rlhf", PKU_SAFE_RLHF, "safety")
    assert [text[:4] for text in responses(packed)] == ["Call", "Like"]
    assert packed.safe.tolist() == [1, 0]
    preferred = batch(tmp_path, "pku_safe_rlhf", PKU_SAFE_RLHF, "preference")
    assert [text[:4] for text in responses(preferred)] == ["Like", "Call"]


def test_ultrafeedback_ranked(tmp_path):
    packed = batch(tmp_path, "ultrafeedback_ranked", ULTRAFEEDBACK, "ranked")
    assert responses(packed) == ["b says 7", "c says 2", "a says 4", "d says 9"]
    assert packed.score.tolist() == [4.75, 4.5, 1, 1]
    best_worst = batch(tmp_path, "ultrafeedback_ranked", ULTRAFEEDBACK, "preference")
    assert (responses(best_worst), best_worst.margin.tolist()) == (["b says 7", "d says 9"], [3.75])
    every = batch(tmp_path, "ultrafeedback_ranked", ULTRAFEEDBACK, "preference", "data.spec.pairs=all")
    assert every.margin.tolist() == [0.25, 3.75, 3.75, 3.5, 3.5]
    labelled = batch(tmp_path, "ultrafeedback_ranked", ULTRAFEEDBACK, "unpaired", "data.spec.threshold=4.6")
    assert labelled.desirable.tolist() == [1, 0, 0, 0]
    relative = batch(tmp_path, "ultrafeedback_ranked", ULTRAFEEDBACK, "unpaired", "data.spec.threshold=mean")
    assert relative.desirable.tolist() == [1, 1, 0, 0]


def test_ultrafeedback_for_unpaired_and_ranked_methods(tmp_path):
    packed = batch(tmp_path, "ultrafeedback", ULTRAFEEDBACK_BINARIZED, "unpaired")
    assert (responses(packed), packed.desirable.tolist()) == (["7", "9"], [1, 0])
    assert batch(tmp_path, "ultrafeedback", ULTRAFEEDBACK_BINARIZED, "ranked").score.tolist() == [8.5, 3.0]


def test_helpsteer2(tmp_path):
    packed = batch(tmp_path, "helpsteer2", HELPSTEER2, "attributes")
    assert packed.names == ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    assert packed.attributes.tolist() == [[4, 4, 3, 1, 0]]
    assert batch(tmp_path, "helpsteer2", HELPSTEER2, "ranked").score.tolist() == [4]
    assert batch(tmp_path, "helpsteer2", HELPSTEER2, "unpaired", "data.spec.threshold=3").desirable.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "row", "steps"),
    [
        ("math_shepherd", MATH_SHEPHERD, ["Step 1: 1 + 1 is 2.\n", "Step 2: 2 + 1 is 4. The answer is: 4\n"]),
        ("prm800k", PRM800K, ["1 + 1 is 2.\n", "2 + 1 is 4.\n"]),
    ],
)
def test_solutions_in_steps(tmp_path, name, row, steps):
    packed = batch(tmp_path, name, row, "steps")
    assert packed.step_label.tolist() == [1, 0]
    first, last = packed.target.tolist()
    start, end = packed.response_span[0].tolist()
    decode = tokenizers.qwen_like().decode
    assert [decode(packed.ids[start : first + 1]), decode(packed.ids[first + 1 : last + 1])] == steps
    assert last == end - 1
    assert decode(packed.ids[:start]) == "What is 1 + 1 + 1?"


def test_kto_mix(tmp_path):
    packed = batch(tmp_path, "kto_mix", KTO_MIX, "unpaired")
    assert (responses(packed), packed.desirable.tolist()) == (["9"], [0])
