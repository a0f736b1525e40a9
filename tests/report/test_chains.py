"""The page of a chain: its stages in their order, and samples before and after each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.report import Runs, write_report
from rlhf_lightning.report.chains import read_chains
from rlhf_lightning.report.frontier import points_of
from tests.helpers.synthetic_runs import METHODS, write_run

SFT, DPO = list(METHODS)[:2]
AXES = ("val/kl/reference", "val/sample/reward")


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two training stages, one of ``rlhf generate``, and a stage with other options from an earlier command."""
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
    """Stages of earlier commands and stages that train nothing are left out."""
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
    assert all(response is not None for row in whole.samples.rows for response in row.responses)


def test_the_page_has_the_stages(chain, tmp_path):
    report = write_report(Runs.read(chain), tmp_path / "out", chains=read_chains([chain]))
    text = report.page.read_text(encoding="utf-8")
    assert '<section id="stages">' in text
    assert "dpo.x=1 &amp; &lt;b&gt;" in text
    assert "<h3>after dpo</h3>" in text
    alone = write_report(Runs.read(chain / "sft/aa"), tmp_path / "alone")
    assert '<section id="stages">' not in alone.page.read_text(encoding="utf-8")


def staged(chain: Path, name: str, digest: str, computes: dict, metrics: dict | None = None) -> dict:
    """Write a stage of ``rlhf generate``."""
    folder = chain / name / digest
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"stage": name, "computes": {"command": "generate", **computes}}))
    (folder / "result.json").write_text(json.dumps({"status": "done", "metrics": metrics or {}}))
    return {"name": name, "command": "generate", "folder": f"{name}/{digest}", "needs": {}, "options": []}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A build stage and generate stages with two strengths, two seeds and two settings of the build."""
    chains = []
    for number, (seed, size) in enumerate([(1, 8), (2, 8), (1, 9), (2, 9)]):
        build = f"{number:012x}"
        stages = [staged(tmp_path, "build", build, {"seed": seed, "size": size})]
        for strength in (1, 20):
            model = {"path": f"<chain>/build/{build}/vectors", "strength": strength}
            metrics = {"val/sample/reward": size + strength + 0.1 * seed, "val/kl/reference": strength + 0.01 * seed}
            one = {"seed": seed, "also": {"seed": seed}, "model": model, "files": {"model.path": f"digest of {build}"}}
            stages.append(staged(tmp_path, f"steer_{strength}", f"{number:011x}{strength // 20}", one, metrics))
        chains.append({"options": [f"seed={seed}", f"build.size={size}"], "stages": stages})
    best = {"val/sample/reward": 30.0, "val/kl/choice": 0.5}
    chains[0]["stages"].append(staged(tmp_path, "best", "f" * 12, {"seed": 1}, best))
    (tmp_path / "chain.json").write_text(json.dumps({"size": "tiny", "chains": chains}))
    return tmp_path


def test_stages_are_pooled_over_seeds_and_not_over_earlier_stages(sweep):
    runs = Runs.read(sweep)
    assert {run.stage for run in runs} == {"steer_1", "steer_20", "best"}  # a build has no numbers
    pooled = {(group.runs[0].stage, tuple(run.seed for run in group.runs)) for group in runs.groups}
    assert pooled == {("steer_1", (1, 2)), ("steer_20", (1, 2)), ("best", (1,))}
    assert len(runs.groups) == 5
    sizes = sorted(round(group.runs[0].metrics["val/sample/reward"] - 0.1) for group in runs.groups)
    assert sizes == [9, 10, 28, 29, 30]
    assert {group.method for group in runs.groups} == {"steer", "best"}
    assert all(group.label.startswith(group.runs[0].stage) for group in runs.groups)


def lines_of(runs: Runs) -> set[tuple[float, ...]]:
    return {tuple(round(float(x), 3) for x in line.get_xdata()) for line in runs.frontier().figure.axes[0].lines}


def test_the_frontier_joins_strengths_and_draws_a_bound_hollow(sweep):
    runs = Runs.read(sweep)
    by_stage = {point.group.runs[0].stage: point for point in points_of(runs.groups, runs.looks, *AXES)}
    assert (by_stage["best"].x, by_stage["best"].y, by_stage["best"].bound) == (0.5, 30.0, True)
    assert not by_stage["steer_1"].bound
    axes = runs.frontier().figure.axes[0]
    words = ("KL to the reference", "mean reward of the responses")
    assert (axes.get_xlabel().split(" (nats")[0], axes.get_ylabel()) == words
    line = (1.015, 20.015)
    assert line not in lines_of(runs)  # two settings of each
    assert line in lines_of(Runs([run for run in runs if int(run.metrics["val/sample/reward"]) in (9, 28)]))
