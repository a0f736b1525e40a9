"""Tables of a report contain text from runs, which a spreadsheet must not read as a formula."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.report import ReportError, Runs
from rlhf_lightning.report.leaderboard import write_runs

FORMULAS = ['=HYPERLINK("http://x","y")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1+1", "\r=1+1", " =1+1"]


def run(folder: Path, error: str, options: dict[str, object], value: float) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 1, "method": {"loss": options}}))
    result = {"status": "failed", "error": error, "metrics": {"val/loss": value}, "steps": 1}
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_is_a_formula(tmp_path: Path, text: str):
    run(tmp_path / "runs" / "=a", text, {"beta": -0.5, "note": text}, -1.5)
    run(tmp_path / "runs" / "b", "", {"beta": 0.5, "note": "x"}, 0.5)
    read = Runs.read(tmp_path / "runs")
    board = read.leaderboard().write_csv(tmp_path / "board.csv")
    table = write_runs(read.runs, read.groups, tmp_path / "runs.csv")
    cells = [cell for file in (board, table) for row in csv.reader(file.open(newline="")) for cell in row]
    assert text.strip() in {cell.lstrip("'").strip() for cell in cells}  # it is there, as text
    assert [cell for cell in cells if cell.strip()[:1] in "=+@" and cell.strip()] == []
    assert {cell for cell in cells if cell.startswith("-")} <= {"-0.5", "-1.5"}  # numbers stay numbers
    assert all(cell.isprintable() for cell in cells)


def test_control_characters_are_taken_out(tmp_path: Path):
    run(tmp_path / "runs" / "a", "\x1b[2Jcleared\x07\nnext", {"beta": 0.5}, 0.5)
    read = Runs.read(tmp_path / "runs")
    with write_runs(read.runs, read.groups, tmp_path / "runs.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["error"] == " [2Jcleared "


def test_a_bomb_is_an_error(tmp_path: Path):
    run(tmp_path / "runs" / "a", "", {}, 0.5)
    levels = [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 9)}]" for n in range(9)]
    (tmp_path / "runs" / "a" / "config.yaml").write_text("\n".join(levels))
    with pytest.raises(ReportError, match=r"config\.yaml: its aliases stand for more than"):
        Runs.read(tmp_path / "runs").leaderboard()
