"""Small data on disk and short overrides, shared by the tests that compose and run configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.cli.console import reset_logging
from rlhf_lightning.cli.main import main

#: A run of a second: no samples, no export, no second checkpoint.
LEAN = ["callbacks.samples=null", "callbacks.export=null", "callbacks.best=null"]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """Eight short pairs with margins, most of them with a judgment."""
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"What is {a} plus {a}?",
            "chosen": f"It is {2 * a}, of course.",
            "rejected": f"I think it is {a}{a}.",
            "score_chosen": 1.0 + a,
            "score_rejected": 0.5,
            "win_chosen": 0.75,
            "win_rejected": 0.25,
            "policy_sample": "rejected",
            "reference_sample": "rejected",
            "judgment": f"That is not what {a} plus {a} makes." if a % 4 else None,
        }
        for a in range(8)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def tiny(pairs, tmp_path) -> list[str]:
    """Overrides of a run on those pairs with a model made on the spot."""
    data = ["data=json", f"data.source.path={pairs}", "data.validation=0.3", "data.batch_size=2"]
    return ["model=tiny_random", "trainer=debug", *data, "data.spec.cache=false", *LEAN]


@pytest.fixture
def rlhf(tmp_path, monkeypatch, capsys):
    """Call the command in a folder of its own: ``code, out, err = rlhf("train", ...)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rlhf"])
    for name in ("HYDRA_FULL_ERROR", "RLHF_SWEEP", "RLHF_DEBUG", "RLHF_DATE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)

    def call(*arguments: str) -> tuple[int, str, str]:
        from rlhf_lightning.cli.sweep import SweepSummary

        SweepSummary.exit_code = 0
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    reset_logging()
