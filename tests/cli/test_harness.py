"""``rlhf evaluate benchmark=<task>``: the numbers of lm-evaluation-harness for what a run trained."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.harness import check, metrics, table
from rlhf_lightning.cli.main import main

TEXTS = ["The sky is blue.", "Grass grows.", "Two and two are four."]
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed"
)


@pytest.fixture
def task(tmp_path):
    """A task of three texts in a file, without a hub."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    file = tmp_path / "texts.yaml"
    options = {
        "task": "texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    }
    file.write_text(json.dumps(options))
    return file


@needs_harness
def test_a_run_is_scored_with_what_it_trained(tmp_path, task):
    """The perplexity is that of the run's export in transformers, of all three texts and of the first two."""
    run = tmp_path / "run"
    small = ["model=tiny_random", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    sizes = ["trainer.max_steps=3", "data.batch_size=4", "optimizer.lr=0.01", "scheduler=constant"]
    export = ["callbacks=[last,export]", "callbacks.export.form=merged"]
    assert (
        main(["train", *small, "method=preferred_ft", "adapter=lora", *sizes, *export, f"paths.output_dir={run}"]) == 0
    )
    assert (run / "export" / "last" / "model.safetensors").is_file(), "merged weights, without the base"
    model = AutoModelForCausalLM.from_pretrained(run / "export" / "last")
    tokenizer = AutoTokenizer.from_pretrained(run / "export" / "last")
    for limit, texts in ((None, TEXTS), (2, TEXTS[:2])):
        folder = tmp_path / f"evaluation-{limit}"
        options = [f"benchmark={task}", *([] if limit is None else [f"harness.limit={limit}"])]
        assert main(["evaluate", f"run={run}", *options, "trainer.accelerator=cpu", f"paths.output_dir={folder}"]) == 0
        given = json.loads((folder / "result.json").read_text())["metrics"]["val/texts/byte_perplexity"]
        expected = perplexity(model, tokenizer, texts)
        assert given == pytest.approx(expected, rel=1e-4)
        assert json.loads((folder / "benchmark.json").read_text())["n-samples"]["texts"]["effective"] == len(texts)


def perplexity(model, tokenizer, texts) -> float:
    """Of a byte, of texts as the tokenizer encodes them behind the token that the harness begins windows with."""
    total = 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logs = model(ids).logits.float().log_softmax(-1)
        total += float(logs[0, :-1].gather(1, ids[0, 1:, None]).sum())
    return math.exp(-total / sum(len(text.encode()) for text in texts))


@needs_harness
def test_a_task_that_does_not_exist_is_named_with_the_nearest(tmp_path, capsys):
    assert main(["evaluate", "model=tiny_random", "benchmark=arc_esy", f"paths.output_dir={tmp_path}/e"]) == 2
    assert "arc_easy" in capsys.readouterr().err


def test_without_the_harness_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rlhf-lightning\[lm-eval\]'"):
        check(compose("evaluate", ["model=tiny_random", "benchmark=arc_easy"]))


def test_what_a_benchmark_has_no_use_for_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    rewards = compose("evaluate", ["model=tiny_random", "benchmark=arc_easy", "method=bradley_terry"])
    with pytest.raises(ConfigError, match="trains rewards"):
        check(rewards)
    instructed = ["prompting=instruction", "prompting.text=Be brief."]
    with pytest.raises(ConfigError, match="set prompting=none"):
        check(compose("evaluate", ["model=tiny_random", "benchmark=arc_easy", *instructed], check=False))


def test_a_task_of_a_yaml_counts_on_the_command_line_alone(tmp_path):
    """Its file may name code."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "sly.yaml").write_text("# @package _global_\nbenchmark: task.yaml\n")
    with pytest.raises(ConfigError, match="only on the command line"):
        compose("evaluate", ["experiment=sly"], config_dirs=[str(tmp_path)])


def test_numbers_and_table():
    """Names without the filter ``none``; an error stands beside its value, an alias is no number."""
    results = {
        "arc": {"alias": "arc", "acc,none": 0.25, "acc_stderr,none": 0.125},
        "gsm8k": {"exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"},
    }
    assert metrics(results) == {"arc/acc": 0.25, "arc/acc_stderr": 0.125, "gsm8k/exact_match.strict": 0.5}
    lines = list(table({"results": results, "n-samples": {"arc": {"effective": 12}}, "n-shot": {"arc": 5}}))
    assert [line.split() for line in lines[1:]] == [
        ["arc/acc", "0.2500", "0.1250", "12", "5"],
        ["gsm8k/exact_match.strict", "0.5000"],
    ]
