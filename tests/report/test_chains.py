"""The page of a chain: its stages in their order, and samples before and after each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.report import Runs, write_report
from rlhf_lightning.report.chains import read_chains
from tests.helpers.synthetic_runs import METHODS, write_run

SFT, DPO = list(METHODS)[:2]


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two stages that trained, one of ``rlhf generate``, and a stage of other options that an earlier command left."""
    for name, method in (("sft/aa", SFT), ("dpo/bb", DPO), ("dpo/old", DPO)):
        write_run(tmp_path / name, method, steps=40)
    (tmp_path / "answers/cc").mkdir(parents=True)
    (tmp_path / "answers/cc/result.json").write_text(json.dumps({"status": "done", "seconds": 2.5}))
    stages = [
        {"name": "sft", "command": "train", "folder": "sft/aa", "needs": {}, "options": []},
        {"name": "dpo", "command": "train", "folder": "dpo/bb", "needs": {"sft": "sft/aa"}, "options": []},
        {"name": "answers", "command": "generate", "folder": "answers/cc", "needs": {"dpo": "dpo/bb"}, "options": []},
    ]
    chains = [{"options": ["dpo.x=1 & <b>"], "stages": stages}]
    (tmp_path / "chain.json").write_text(json.dumps({"size": "tiny", "chains": chains}))
    return tmp_path


def test_runs_of_a_chain_are_those_of_its_last_command(chain):
    """Not those that earlier ones left, nor stages that train nothing."""
    assert {run.name for run in Runs.read(chain)} == {"sft/aa", "dpo/bb"}


def test_stages_in_their_order_with_samples_around_each(chain):
    (whole,) = read_chains([chain, chain / "sft"])
    assert [(stage.name, stage.needs, stage.run.state) for stage in whole.stages] == [
        ("sft", (), "done"),
        ("dpo", ("sft",), "done"),
        ("answers", ("dpo",), "done"),
    ]
    assert whole.stages[2].title == "rlhf generate"
    assert whole.seconds == 12.5 * 2 + 2.5
    assert whole.samples.columns == ("in the data", "before sft", "after sft", "before dpo", "after dpo")
    assert all(answer is not None for row in whole.samples.rows for answer in row.answers)


def test_the_page_has_the_stages(chain, tmp_path):
    report = write_report(Runs.read(chain), tmp_path / "out", chains=read_chains([chain]))
    text = report.page.read_text(encoding="utf-8")
    assert '<section id="stages">' in text
    assert "dpo.x=1 &amp; &lt;b&gt;" in text
    assert "<h3>after dpo</h3>" in text
    alone = write_report(Runs.read(chain / "sft/aa"), tmp_path / "alone")
    assert '<section id="stages">' not in alone.page.read_text(encoding="utf-8")
