"""``rlhf report`` on real runs of the smallest model, its errors, help and tab completion."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from rlhf_lightning.cli.complete import complete
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.main import main
from rlhf_lightning.cli.train import train
from rlhf_lightning.report import Runs
from tests.helpers.synthetic_runs import write_run

OPTIONS = ["model=tiny_random", "trainer=debug", "data.batch_size=4", "callbacks.samples.max_new_tokens=8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two methods, one of them with two seeds, as `rlhf train` leaves them."""
    root = tmp_path_factory.mktemp("runs")
    for name, method, seed in (("a", "dpo", 1), ("b", "dpo", 2), ("c", "simpo", 1)):
        folder = f"paths.output_dir={root / name}"
        train(compose("train", [f"method={method}", f"seed={seed}", f"data.spec.cache_dir={root}", folder, *OPTIONS]))
    return root


def test_real_runs(trained, tmp_path, capsys):
    """Seeds are pooled, and every section of the page has its data."""
    assert main(["report", str(trained), "-o", str(tmp_path), "--title", "two <methods>"]) == 0
    out = capsys.readouterr().out
    assert "3 runs (3 done), ranked by val/reward/accuracy" in out
    assert str(tmp_path / "report.html") in out
    text = (tmp_path / "report.html").read_text()
    assert "<h1>two &lt;methods&gt;</h1>" in text
    for section in ("frontier", "curves", "rewards", "samples"):
        assert f'<section id="{section}">' in text
    assert {file.name for file in tmp_path.iterdir()} == {
        "report.html", "frontier.png", "curves.png", "rewards.png", "leaderboard.csv", "runs.csv"
    }  # fmt: skip


def test_files_of_a_real_run_are_read(trained):
    runs = Runs.read(trained)
    assert {row.label: len(row.group.done) for row in runs.leaderboard()} == {"dpo": 2, "simpo": 1}
    run = runs[0]
    chosen, rejected = run.rewards
    assert run.metrics["val/reward/accuracy"] == pytest.approx(float(np.mean(chosen > rejected)))
    assert run.metrics["val/reward/margin"] == pytest.approx(float(np.mean(chosen - rejected)), abs=1e-4)
    assert sorted(run.samples) == [0, 2]
    assert (
        runs.frontier().figure.axes[0].get_title(loc="left")
        == "accuracy of the reward, validation against KL to the reference"
    )


def test_a_picture_is_shown_and_saved(trained, tmp_path):
    picture = Runs.read(trained).curves(["train/loss"])
    assert picture._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.save(tmp_path / "new" / "curves.svg").read_text().count("<svg") == 1
    assert "dpo" in Runs.read(trained).leaderboard()._repr_html_()


def test_the_report_is_written_next_to_the_runs_by_default(tmp_path, capsys):
    """A second report does not take the first one for a run."""
    write_run(tmp_path / "sweep" / "0")
    assert main(["report", str(tmp_path / "sweep" / "*")]) == 0
    assert (tmp_path / "sweep" / "report" / "report.html").is_file()
    assert "1 run (1 done)" in capsys.readouterr().out
    assert len(Runs.read(tmp_path / "sweep" / "*")) == len(Runs.read(tmp_path / "sweep")) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nowhere"], "there is no such file or folder"),
        (["."], "no runs in ."),
        (["run", "--metric", "val/gold/rewrad"], "Did you mean val/gold/reward?"),
    ],
)
def test_errors_are_messages_without_a_traceback(tmp_path, monkeypatch, capsys, arguments, part):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "elsewhere" / "run")
    monkeypatch.chdir(tmp_path / ("empty" if arguments[0] == "." else "elsewhere"))
    assert main(["report", *arguments]) == 2
    err = capsys.readouterr().err
    assert part in err
    assert "Traceback" not in err


def test_tab_completion():
    assert complete("rep") == ["report"]
    assert complete("report --m") == ["--metric", "--mode"]
    assert complete("report runs --mode ") == ["max", "min"]
    assert complete("report run") == []  # folders are the shell's own part


def test_neither_torch_nor_hydra_is_imported(tmp_path):
    """A report of many runs is read on a laptop; imports of torch alone would take longer than the report."""
    write_run(tmp_path / "run")
    script = (
        "import sys; from rlhf_lightning.cli.main import main; code = main(['report', sys.argv[1]]);"
        "heavy = {'torch', 'hydra', 'omegaconf', 'transformers', 'matplotlib.pyplot'};"
        "sys.exit(code or bool(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
