"""The benchmark of one GPU: its whole way in miniature on a CPU, and what it reports when time is up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # a script's folder, as when it is started
    import gpu

    return gpu


def lines(folder: Path) -> dict[tuple[str, str], dict[str, object]]:
    results = json.loads((folder / "gpu.json").read_text())["results"]
    return {(row["part"], row["side"]): row for row in results}


@pytest.mark.slow
def test_the_miniature_measures_every_part(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--miniature", "--threads", "1", "--work", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=540)
    measured = lines(tmp_path)
    assert {("dpo", "ours"), ("sft", "ours"), ("grpo", "ours"), ("generate", "transformers")} <= measured.keys()
    for row in measured.values():
        assert "problem" not in row, row
        assert row["tokens_per_second"] > 0
        assert row["peak_mib"] > 100


def test_a_side_that_is_slow_or_fails_leaves_the_others_measured(gpu, tmp_path: Path, monkeypatch) -> None:
    step = {"cpu": 1.0, "wall": 2.0, "loss": 0.5, "generate_cpu": 0.5, "generate_wall": 1.0}

    def run(side, python, settings, folder, timeout):
        if side == "ours_grpo":
            time.sleep(0.01)
            raise subprocess.TimeoutExpired(side, timeout)
        if settings.get("method") == "sft":
            raise SystemExit("ours failed:\nno memory is left")
        return {"scores": [], "steps": [step, step], "peak_mib": 321.0}

    monkeypatch.setattr(gpu.vs_trl, "run", run)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--miniature", "--minutes", "1", "--work", str(tmp_path)])
    gpu.main()
    measured = lines(tmp_path)
    assert measured["sft", "ours"]["problem"] == "failed: no memory is left"
    assert str(measured["grpo", "ours"]["problem"]).startswith("stopped after")
    assert measured["generate", "transformers"]["tokens_per_second"] == 1 * 4 * 2 * 4 / 2.0
    rows = json.loads((tmp_path / "pairs.json").read_text())
    assert measured["dpo", "ours"]["tokens_per_second"] == gpu.vs_trl.useful_tokens(rows, "dpo", 2) / 2.0


def test_nothing_begins_after_the_end(gpu, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--miniature", "--minutes", "0", "--work", str(tmp_path)])
    gpu.main()
    assert {row["problem"] for row in lines(tmp_path).values()} == {"not begun: the time of this part is up"}
