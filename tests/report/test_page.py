"""The page: its structure, no external resources, and no markup from the text of runs."""

from __future__ import annotations

import csv
import json
import re
import time
from html.parser import HTMLParser

import pytest

from rlhf_lightning.report import ReportError, Runs, write_report
from rlhf_lightning.report.drawing import inlined
from rlhf_lightning.report.page import options_table
from rlhf_lightning.report.samples import compare
from tests.helpers.synthetic_runs import METHODS, write_run, write_sweep

VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = "<img src=x onerror=\"alert(1)\"> & 'quoted' {{ 7 * 7 }}"


class Outline(HTMLParser):
    """Sections with the kinds of elements in them, and links; checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, dict[str, int]] = {}
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "xlink:href") and value]
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "section":
            self.sections[attributes["id"]] = {}
        if self.sections and "section" in self.open and tag in ("table", "svg", "article"):
            counts = self.sections[list(self.sections)[-1]]
            counts[tag] = counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())


def page(root, folder, **options):
    report = write_report(Runs.read(root, **options), folder)
    return report.page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two methods, three values of beta and three seeds; one job failed."""
    return write_sweep(tmp_path_factory.mktemp("sweep"), ["dpo", "kto"], seeds=3, beta=[0.05, 0.1, 0.5])


@pytest.fixture(scope="module")
def text(sweep, tmp_path_factory):
    return page(sweep, tmp_path_factory.mktemp("report"))


def test_structure(text):
    """The golden outline of a sweep: any section, table or picture that is lost or doubled fails here."""
    assert Outline(text).sections == {
        "leaderboard": {"table": 1},
        "frontier": {"svg": 1},
        "swept": {"svg": 1 + 3},  # the whole, and each panel for phones
        "curves": {"svg": 1 + 8},
        "rewards": {"svg": 1 + 3},
        "samples": {"article": 24},  # three prompts: the data, before training, six groups
        "options": {"table": 1},
        "runs": {"table": 2},  # what did not finish, and all
    }


def test_the_page_loads_no_external_resources(text):
    outline = Outline(text)
    assert [address for address in outline.addresses if not address.startswith("#")] == []
    inside = {address[1:] for address in outline.addresses}
    assert inside <= set(outline.ids)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)


def test_ids_are_unique(text):
    ids = Outline(text).ids
    assert len(ids) == len(set(ids))


def test_report_of_one_run(tmp_path):
    """No front and no comparison; its options in full, samples before and after side by side."""
    write_run(tmp_path / "run")
    text = page(tmp_path / "run", tmp_path / "report")
    assert Outline(text).sections["samples"] == {"article": 9}
    assert "nothing to compare it with" in text
    assert "method.loss.beta" in text
    assert "Pareto front</text>" not in text
    assert "<title>dpo: run</title>" in text


def test_a_run_without_metrics(tmp_path):
    """The run was killed before its first step; the page reports that."""
    folder = write_run(tmp_path / "run", status=None)
    (folder / "metrics.csv").unlink()
    (folder / "implicit_rewards.npz").unlink()
    for file in (folder / "samples").iterdir():
        file.unlink()
    text = page(folder, tmp_path / "report")
    assert list(Outline(text).sections) == ["leaderboard", "options", "runs"]
    assert "1 unfinished" in text
    assert "still running, or killed" in text


def test_failed_runs_are_listed_with_their_reason_and_not_pooled(sweep, text):
    runs = Runs.read(sweep)
    assert runs.states == {"done": 17, "failed": 1}
    assert "the loss is not finite at step 66" in text
    row = next(row for row in runs.leaderboard() if row.unfinished)
    assert (row.unfinished, row.values["val/gold/reward"].n) == ("1 failed", 2)


def test_text_of_runs_is_escaped(tmp_path):
    """Prompts, responses, errors, option values and metric names come from users and models."""
    folder = write_run(tmp_path / "a", status="failed", error=HOSTILE)
    row = {"prompt": HOSTILE, "response": HOSTILE, "data": HOSTILE, "row": HOSTILE, "step": 9}
    other = write_run(tmp_path / "b")
    (other / "samples" / "step_00000300.jsonl").write_text(json.dumps(row))
    config = folder / "config.yaml"
    config.write_text(config.read_text() + f"note: {json.dumps(HOSTILE)}\n")
    metrics = (folder / "metrics.csv").read_text().replace("train/grad_norm", "<b>$x_{$")
    (folder / "metrics.csv").write_text(metrics)
    text = page(tmp_path, tmp_path / "report")
    assert "<img" not in text
    assert "<b>$" not in text
    assert "{{ 7 * 7 }}" in text
    assert text.count("&lt;img src=x onerror=&#34;alert(1)&#34;&gt; &amp; &#39;quoted&#39;") >= 5
    assert "\u202e" not in text
    assert "<script>alert(1)" not in text
    Outline(text)


def test_options_of_methods_share_a_column(tmp_path):
    """Also if the methods differ only in their loss; names that only look like a target are kept."""
    for method in ("dpo", "ipo"):
        folder = write_run(tmp_path / method, method, lr=0.1 if method == "dpo" else 0.2)
        text = (folder / "config.yaml").read_text().replace("beta: 0.1", "beta: 0.1\n    max_tokens: 3")
        (folder / "config.yaml").write_text(text)
    table = options_table(Runs.read(tmp_path))
    assert [row["method"] for row in table["rows"]] == ["beta=0.1 max_tokens=3"] * 2
    assert table["sections"] == {"optimizer": ["lr"]}
    assert [row["cells"] for row in table["rows"]] == [["0.1"], ["0.2"]]


def test_samples_are_of_the_same_prompts(sweep):
    runs = Runs.read(sweep)
    table = runs.samples(columns=4)
    assert table.columns[:2] == ("in the data", "before training")
    assert [name.split(" (seed")[0] for name in table.columns[2:]] == [group.label for group in runs.groups[:4]]
    for row in table.rows:
        methods = [name.split()[0] for name in table.columns[2:]]
        assert [response.text.split(":")[0] for response in row.responses[2:]] == methods
    assert table.rows[1].responses[2].finished is False


def test_long_text_is_cut_and_invisible_characters_are_shown(tmp_path):
    folder = write_run(tmp_path / "a")
    row = {"prompt": "p\x00\x1b[31m", "response": "x" * 50, "row": "r:0"}
    (folder / "samples" / "step_00000300.jsonl").write_text(json.dumps(row))
    (comparison, *_) = [r for r in compare(Runs.read(tmp_path).groups, characters=40).rows if r.row == "r:0"]
    assert comparison.prompt == "p\u2400\u241b[31m"
    assert comparison.responses[2].text == "x" * 40 + " … (10 more characters)"


def test_the_best_of_a_column(tmp_path):
    """Losses of different methods have different scales, and a small divergence is not better."""
    for method in ("dpo", "sft"):
        write_run(tmp_path / method, method)
    board = Runs.read(tmp_path).leaderboard()
    assert [row.label for row in board] == ["dpo", "sft"]
    assert "val/gold/reward" in board[0].best
    assert not {"val/loss", "train/loss", "val/gold/kl"} & (board[0].best | board[1].best)
    assert [row.label for row in Runs.read(tmp_path, metric="val/gold/kl", mode="min").leaderboard()] == ["sft", "dpo"]


def test_the_metric_of_the_runs_ranks(tmp_path):
    """optimized_metric of the runs, unless the user asks for another; a misspelt one names the closest."""
    for method in ("dpo", "sft"):
        folder = write_run(tmp_path / method, method)
        result = json.loads((folder / "result.json").read_text()) | {"optimized_metric": "train/loss"}
        (folder / "result.json").write_text(json.dumps(result))
    assert (Runs.read(tmp_path).metric, Runs.read(tmp_path).mode) == ("train/loss", "min")
    with pytest.raises(ReportError, match=r"Did you mean val/gold/reward\?"):
        Runs.read(tmp_path, metric="val/gold/rewards")
    with pytest.raises(ReportError, match=r"Did you mean val/loss\?"):
        Runs.read(tmp_path).curves(["val/los"])


def test_tables(sweep, tmp_path):
    """leaderboard.csv has a line a group with n for every metric, runs.csv a line a run, also of the failed one."""
    report = write_report(Runs.read(sweep), tmp_path)
    board, runs = (list(csv.DictReader(file.open())) for file in report.tables)
    assert len(board) == 6
    assert len(runs) == 18
    assert board[0].keys() >= {
        "rank",
        "label",
        "method.loss.beta",
        "val/gold/reward mean",
        "val/gold/reward n",
        "failed",
    }
    failed = next(row for row in runs if row["state"] == "failed")
    assert failed["error"] == "the loss is not finite at step 66"
    rewards = [float(r["val/gold/reward"]) for r in runs if r["group"] == board[0]["label"] and r["state"] == "done"]
    assert float(board[0]["val/gold/reward mean"]) == pytest.approx(sum(rewards) / len(rewards))
    assert {file.name for file in report.pictures} == {
        "frontier.png", "over_method_loss_beta.png", "curves.png", "rewards.png"
    }  # fmt: skip


def test_lines_over_an_option(sweep):
    from rlhf_lightning.report.sensitivity import lines_of

    runs = Runs.read(sweep)
    lines = lines_of(runs.groups, "method.loss.beta", "val/gold/reward")
    assert {label: [value for value, _ in line] for label, line in lines.items()} == {
        "dpo": [0.05, 0.1, 0.5],
        "kto": [0.05, 0.1, 0.5],
    }
    assert runs.over("seed") is None
    assert runs.swept() == ["method.loss.beta"]


def test_the_untrained_policy_is_on_the_front(tmp_path):
    """Logged at step 0 with no divergence. sft ends with less reward than that, so it is not on the front."""
    for method in ("dpo", "sft"):
        folder = write_run(tmp_path / method, method)
        lines = (folder / "metrics.csv").read_text().splitlines()
        cells = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
        cells |= {"val/gold/reward": "1.0", "val/gold/kl": "0.001"}
        lines[1] = ",".join(cells.values())
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    picture = Runs.read(tmp_path).frontier()
    assert picture.alt.endswith("on the front: dpo")
    texts = {text.get_text() for text in picture.figure.axes[0].texts}
    assert texts == {"dpo", "sft", "before training"}


def test_names_in_a_crowd_do_not_overlap(tmp_path):
    """Measured in the finished picture, in pixels; most of thirty points in one heap still have their name."""
    write_sweep(tmp_path, ["dpo", "ipo", "kto"], seeds=1, beta=[0.1, 0.11, 0.12, 0.13, 0.14], lr=[0.1, 0.2])
    figure = Runs.read(tmp_path).frontier(named=30).figure
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) > 15
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_panels_show_their_part_of_the_whole_drawing(tmp_path):
    """For phones: no panel overlaps another one, and each has the axes that it is called after."""
    write_run(tmp_path / "run")
    picture = Runs.read(tmp_path / "run").curves()
    panels = picture.panels()
    axes = [one for one in picture.figure.axes if one.axison]
    boxes = [[float(number) for number in re.search(r'viewBox="([^"]*)"', panel)[1].split()] for panel in panels]
    assert len(panels) == len(axes) > 3
    for one, (x, y, wide, high) in zip(axes, boxes, strict=True):
        frame = one.get_window_extent().transformed(picture.figure.transFigure.inverted())
        width, height = picture.figure.get_size_inches() * 72
        assert x < frame.x0 * width < frame.x1 * width < x + wide
        assert y < (1 - frame.y1) * height < (1 - frame.y0) * height < y + high
    middles = [(x + wide / 2, y + high / 2) for x, y, wide, high in boxes]
    for x, y, wide, high in boxes:
        assert sum(x < u < x + wide and y < v < y + high for u, v in middles) == 1
    assert 'id="curves-figure_1"' in picture.svg()
    assert all('href="#curves-figure_1"' in panel for panel in panels)


def test_numbers_are_shortened_in_drawings_only():
    svg = inlined(
        '<?xml?><svg width="9pt" id="a"><path id="group-1" d="M 1.23456 2"/><text>lr=0.00123</text></svg>', "f", "a<b"
    )
    assert svg == (
        '<svg id="f-a" role="img" aria-label="a&lt;b"><title>a&lt;b</title>'
        '<path class="group-1" d="M 1.23 2"/><text>lr=0.00123</text></svg>'
    )


@pytest.mark.slow
def test_two_hundred_runs(tmp_path):
    """Under twenty seconds of one core and fifteen megabytes."""
    write_sweep(tmp_path / "sweep", list(METHODS)[:10], seeds=2, beta=[0.01, 0.03, 0.1, 0.3, 1.0], lr=[1e-3, 3e-3])
    started = time.process_time()
    report = write_report(Runs.read(tmp_path / "sweep"), tmp_path / "report")
    assert time.process_time() - started < 20
    assert report.page.stat().st_size < 15e6


def test_samples_before_training_do_not_count_as_those_of_a_run(tmp_path):
    """A run that was never sampled from again has the column of the untrained policy alone."""
    folder = write_run(tmp_path / "a")
    (folder / "samples" / "step_00000200.jsonl").unlink()
    assert Runs.read(folder).samples().columns == ("in the data", "before training")
