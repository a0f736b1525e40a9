"""Model cards of exports, and ``rlhf push``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from rlhf_lightning.cli.card import write_card, write_cards
from rlhf_lightning.cli.identity import digest_of
from rlhf_lightning.cli.main import main
from tests.helpers.synthetic_runs import write_run


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A DPO run with an adapter for a model of the hub."""
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "polite")
    export = folder / "export" / "last"
    export.mkdir(parents=True)
    (export / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some-org/some-model"}))
    overrides = ["method=dpo", "data.source.path=my pairs.jsonl"]
    content = {"the training data": "abc123"}
    (folder / "job.json").write_text(json.dumps({"method": "dpo", "overrides": overrides, "content": content}))
    counts = {"rows": 9, "kept": 8, "source": "pairs.jsonl", "prompt_tokens": 40, "response_tokens": 60}
    (folder / "data.json").write_text(json.dumps({"train": counts}))
    rows = [{"row": f"a:{at // 2}", "prompt": str(at // 2), "reward": float(at // 2), "kl": 0.5} for at in range(8)]
    for step, shift in ((0, 0.0), (200, 1.0)):
        lines = [json.dumps(row | {"reward": row["reward"] + shift}) for row in rows]
        (folder / "samples" / f"step_{step:08d}.jsonl").write_text("\n".join(lines))
    return folder


def card_of(run: Path) -> ModelCard:
    write_cards(run)
    return ModelCard.load(run / "export" / "last" / "README.md")


def test_the_hub_reads_the_front_matter(run):
    data = card_of(run).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("some-org/some-model", "peft", "text-generation")
    assert data.tags == ["rlhf-lightning", "dpo"]


def test_what_a_reader_asks(run):
    text = card_of(run).text
    assert "A LoRA adapter for `some-org/some-model` by `dpo`" in text
    assert "(https://arxiv.org/abs/2305.18290)" in text
    assert r"$$ -\log\sigma(\beta h) $$" in text
    assert "| `loss.beta` | 0.1 |" in text
    assert "8 of 9 rows of pairs.jsonl, 100 tokens, digest `abc123`" in text
    assert "rlhf train method=dpo 'data.source.path=my pairs.jsonl'" in text


def test_standard_errors_are_over_prompts(run):
    """Eight responses to four prompts are four draws: prompt means 0, 1, 2, 3."""
    error = math.sqrt(5 / 3 / 4)
    assert f"| 1.50 ± {error:.2f} | 2.50 ± {error:.2f} |" in card_of(run).text


def test_a_note_on_the_base_stays(run):
    note = "The base of this adapter has 2 tokens more than some-org/some-model, with embeddings of their own."
    file = run / "export" / "last" / "README.md"
    file.write_text(f"---\nlibrary_name: peft\n---\n\n{note}\n\nOther text.\n")
    for _ in range(2):
        assert write_card(file.parent, run).read_text().count(note) == 1
    assert "Other text." not in file.read_text()


def test_a_card_is_not_part_of_what_weights_are(run):
    before = digest_of(run / "export" / "last")
    write_cards(run)
    assert digest_of(run / "export" / "last") == before


def test_whole_weights_that_score_text(run):
    export = run / "export" / "last"
    (export / "adapter_config.json").unlink()
    (export / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    data = card_of(run).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("transformers", "text-classification", None)


def test_data_of_the_hub_is_named_and_files_are_not(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = {"id": "some-org/pairs"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert card_of(run).data.datasets == ["some-org/pairs"]
    (Path("some-org")).mkdir()
    (Path("some-org") / "pairs").touch()
    assert card_of(run).data.datasets is None


def test_push_uploads_an_export_with_its_card(run, monkeypatch, capsys):
    sent = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: f"hub/{name}:{options['private']}")
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: sent.update(options))
    assert main(["push", "polite", "my-org/polite", "--private"]) == 0
    assert capsys.readouterr().out == "hub/my-org/polite:True\n"
    assert (sent["repo_id"], sent["folder_path"]) == ("my-org/polite", Path("polite/export/last"))
    assert (sent["folder_path"] / "README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["polite", "polite"], "polite is no name on the hub: give ORG/NAME"),
        (["nowhere", "my-org/polite"], "nowhere is not the folder of a run"),
        (["polite", "my-org/polite", "--which", "best"], "no export 'best'; it has last"),
        (["polite", "my-org/polite"], "HF_HUB_OFFLINE is set"),
    ],
)
def test_push_is_refused(run, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["push", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_an_export(run, capsys):
    (run / "export" / "last" / "adapter_config.json").unlink()
    assert main(["push", "polite", "my-org/polite"]) == 2
    assert "rlhf export run=polite writes one" in capsys.readouterr().err
