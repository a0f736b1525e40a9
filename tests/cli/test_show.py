"""``rlhf show``: a run's facts, changes, files and commands."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rlhf_lightning.cli.main import main
from tests.helpers.synthetic_runs import write_run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run with an export, named from here."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "first")
    export = tmp_path / "first" / "export" / "last"
    export.mkdir(parents=True)
    (export / "adapter_config.json").write_text("{}")
    (export / "adapter_model.safetensors").write_bytes(bytes(3 << 20))
    overrides = ["method=dpo", "data.source.path=my pairs.jsonl", "paths.output_dir=elsewhere"]
    record = {"command": "train", "method": "dpo", "overrides": overrides}
    (tmp_path / "first" / "job.json").write_text(json.dumps(record))
    counts = {"rows": 9, "kept": 8, "source": "pairs.jsonl", "prompt_tokens": 40, "response_tokens": 60}
    (tmp_path / "first" / "data.json").write_text(json.dumps({"train": counts}))
    return tmp_path / "first"


def test_facts_changes_files_and_commands(folder, capsys):
    assert main(["show", "first"]) == 0
    out = capsys.readouterr().out
    assert "first  done in 12.5 s, 200 steps" in out
    assert "dpo (arXiv:2305.18290)" in out
    assert "8 of 9 rows from pairs.jsonl, 100 tokens" in out
    assert "What the run changed" in out
    assert "val/gold/reward" in out
    assert "first/export/last  3.0 MiB, adapter for PEFT" in out
    assert "rlhf train method=dpo 'data.source.path=my pairs.jsonl' paths.output_dir=first\n" in out
    assert "rlhf generate run=first" in out


def test_a_model_that_scores_text_is_not_offered_a_chat(folder, capsys):
    (folder / "config.yaml").write_text("method: {_target_: a.RewardModel, head: {_target_: a.Scorer}}\n")
    assert main(["show", "first"]) == 0
    out = capsys.readouterr().out
    assert "rlhf generate" not in out
    assert "rlhf evaluate run=first" in out


def test_a_run_that_failed_says_why(folder, capsys):
    write_run(folder.parent / "second", status="failed", error="the loss [is] not finite\nmore")
    assert main(["show", "second"]) == 0
    out = capsys.readouterr().out
    assert "second  failed in 12.5 s, 66 steps: the loss [is] not finite\n" in out
    assert "next" not in out


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["show", str(tmp_path)]) == 2
    assert "no runs in" in capsys.readouterr().err


def test_it_waits_for_neither_torch_nor_hydra(folder):
    script = (
        "import sys; from rlhf_lightning.cli.main import main; main(['show', 'first'])\n"
        "sys.exit(bool({'torch', 'hydra', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=folder.parent, capture_output=True).returncode == 0
