"""Reading a quickstart run's folder, and its summary."""

import json
from pathlib import Path

import pytest

from rlhf_lightning.cli.quickstart import show
from rlhf_lightning.quickstart.picture import draw, read_curve, smoothed
from rlhf_lightning.quickstart.summary import Summary, mean_and_error, without_common_ends

PROMPT = "<s> user Tell me about {} please <e>"


def make_run(folder: Path) -> Path:
    """Write the files of a run of two steps: sample tables and metrics."""
    (folder / "samples").mkdir(parents=True)
    for step, text, kl in ((0, "Long and dull.", 0.0), (2, "You will enjoy your walk in the warm sun.", 1.5)):
        rows = [
            {"prompt": PROMPT.format(topic), "response": text, "kl": kl} for topic in ("bees", "snow", "jazz music")
        ]
        table = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples" / f"step_{step:08d}.jsonl").write_text(table)
    metrics = folder / "logs" / "metrics.csv"
    metrics.parent.mkdir()
    metrics.write_text(
        "step,train/loss,train/reward/margin,val/loss,val/reward/accuracy,val/reward/margin\n"
        "0,0.69,0.0,,,\n0,,,0.68,0.6,0.1\n1,0.60,0.3,,,\n1,,,0.61,0.75,0.25\n"
    )
    return folder


def test_summary_takes_the_first_and_the_last(tmp_path: Path) -> None:
    summary = Summary.read(make_run(tmp_path))
    assert (summary.accuracy, summary.margin) == (0.75, 0.25)
    rows = {name: (before, after) for name, before, after in summary.rows()}
    assert rows["held-out accuracy"] == ("0.500 *", "0.750")
    assert rows["words per response"] == ("3.0", "9.0")
    assert rows["KL to the start (nats per response)"][1] == "1.50 ± 0.00"
    assert rows["rule's score, new responses"] == ("0.38 ± 0.00", "2.00 ± 0.00")
    assert [question for question, _, _ in summary.examples()] == ["bees", "snow", "jazz music"]


def test_summary_needs_both_tables(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "samples" / "step_00000002.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="one from before and one from after"):
        Summary.read(folder)


def test_curves(tmp_path: Path) -> None:
    metrics = make_run(tmp_path) / "logs" / "metrics.csv"
    assert read_curve(metrics, "train/loss") == ([0, 1], [0.69, 0.60])
    assert read_curve(metrics, "never/logged") == ([], [])
    assert smoothed([1, 3, 5, 7], window=2) == [1, 2, 4, 6]


def test_picture_is_drawn(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    draw(folder / "logs" / "metrics.csv", [0.1, 0.2], [1.5, 1.7], folder / "picture.png")
    assert (folder / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_show_prints_table_command_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(make_run(tmp_path))
    screen = capsys.readouterr().out
    assert "What the run changed" in screen
    assert f"rlhf generate run={tmp_path}" in screen
    before, after = "before  0.38  Long and dull.", "after   2  You will enjoy your walk in the warm sun."
    assert f"> bees\n{before}\n\n{after}\n\n> snow\n" in screen
    assert (tmp_path / "quickstart.png").exists()


def test_common_ends() -> None:
    assert without_common_ends(["a b X c", "a b Y Z c"]) == ["X", "Y Z"]
    assert without_common_ends(["one", "two"]) == ["one", "two"]


def test_mean_and_error() -> None:
    assert mean_and_error([1.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_error([1.0]) == "1.000"
