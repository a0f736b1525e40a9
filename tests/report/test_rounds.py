"""Rounds side by side: read from rollouts and metrics, matched by steps, on the page of every run that draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.report import Runs, write_report
from rlhf_lightning.report.palette import Style
from rlhf_lightning.report.reading import read_run
from rlhf_lightning.report.round_curves import draw_rounds
from rlhf_lightning.report.rounds import RoundTable, chosen, evenly, table_of
from tests.helpers.synthetic_runs import write_run

#: Two prompts with two samples each: score, tokens, finish, advantage, log-probs.
SAMPLES = (
    ("ask", 1.0, [5, 6], "stop", 0.5, [-1.0, -2.0]),
    ("ask", 0.0, [5, 6, 7, 8], "length", -0.5, [-1.0, -1.0, -1.0, -1.0]),
    ("tell", 2.0, [5, 6], "stop", 0.0, [-0.5, -0.5]),
    ("tell", 2.0, [9, 9], "stop", None, []),
)


def write_rounds(folder: Path, versions: list[int], **changes: Any) -> Path:
    """Write files of rounds that were drawn after the given numbers of steps."""
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    for number, version in enumerate(versions):
        rows = [
            {
                "rollout": number, "place": group, "row": f"prompts:{group}", "sample": at % 2, "prompt": prompt,
                "response": f"{prompt} in round {number}", "score": score, "finish": finish, "tokens": len(ids),
                "version": version, "ids": ids, "log_probs": log_probs, "advantage": advantage, **changes,
            }
            for at, (prompt, score, ids, finish, advantage, log_probs) in enumerate(SAMPLES)
            for group in [at // 2]
        ]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rollouts" / f"{number:05d}.jsonl").write_text(text)
    return folder


def write_metrics(folder: Path, *rows: tuple[int, float | str, float | str]) -> None:
    """Write ``metrics.csv`` with KL of the samples and gold reward; the first step is logged as 0."""
    lines = ["step,train/approx_kl,val/gold/reward", *(",".join(map(str, row)) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def table(folder: Path) -> RoundTable:
    rounds = table_of(read_run(folder, "run"), "grpo")
    assert rounds is not None
    return rounds


def test_statistics_of_the_samples_of_a_round(tmp_path):
    (only,) = table(write_rounds(tmp_path, [0])).rounds
    expected = {
        "score": 1.25,
        "length": 2.5,
        "truncated": 0.25,
        "tied": 0.5,  # one of two pairs
        "log_prob_better": -3.0,
        "log_prob_worse": -4.0,
        "distinct_1": 5 / 10,  # 5 6 | 5 6 7 8 | 5 6 | 9 9
        "distinct_2": 4 / 6,  # 56 | 56 67 78 | 56 | 99
        "distinct_3": 1.0,  # 567 678
    }
    assert only.numbers == pytest.approx(expected | {"score_length": only.numbers["score_length"]})
    # deviations of scores -.25 -1.25 .75 .75 and of lengths -.5 1.5 -.5 -.5
    assert only.numbers["score_length"] == pytest.approx(-2.5 / (2.75 * 3.0) ** 0.5)


def test_a_run_without_a_reward_has_no_scores(tmp_path):
    """Its samples are recorded with score 0 and without terms."""
    assert "score" in table_of(read_run(write_rounds(tmp_path / "a", [0]), "run"), "dpo").rounds[0].numbers
    without = table_of(read_run(write_rounds(tmp_path / "b", [0], score=0.0, terms={}), "run"), "spin")
    assert not {"score", "tied", "score_length"} & set(without.rounds[0].numbers)


def test_rounds_of_different_lengths_are_aligned_by_steps(tmp_path):
    """Four rounds of four steps and eight of two; runs with equally many rounds are aligned by their numbers."""
    long = table_of(read_run(write_rounds(tmp_path / "a", [0, 4, 8, 12]), "run"), "iterative")
    short = table_of(read_run(write_rounds(tmp_path / "b", list(range(0, 16, 2))), "run"), "online")
    looks = [Style(colour, "o", (), colour, colour) for colour in ("#111111", "#bb2222")]
    for tables, label, positions in (
        ([long, short], "steps before the round", [[0, 4, 8, 12], list(range(0, 16, 2))]),
        ([long, long], "round", [[0, 1, 2, 3]] * 2),
    ):
        panels = draw_rounds(tables, looks).figure.axes
        assert [list(line.get_xdata()) for line in panels[0].get_lines()] == positions
        assert {panel.get_xlabel() for panel in panels} - {""} == {label}


def test_slots_decide_which_samples_are_better(tmp_path):
    """The slot that the selector chose counts, not the other columns of the row."""
    write_rounds(tmp_path, [0], kept=["rejected"])
    (only,) = table(tmp_path).rounds
    assert only.numbers["log_prob_worse"] == pytest.approx((-3 - 4 - 1) / 3)
    assert "log_prob_better" not in only.numbers


def test_samples_of_another_source_are_left_out(tmp_path):
    write_rounds(tmp_path, [0], source="reference")
    assert "score" not in table(tmp_path).rounds[0].numbers


def test_metrics_are_those_of_the_round(tmp_path):
    """Steps 0 and 1 are the first round's, 2 and 3 the second's; a validation belongs to the steps before it."""
    write_rounds(tmp_path, [0, 2])
    write_metrics(tmp_path, (0, "", 9.0), (0, 1.0, ""), (1, 3.0, 4.0), (2, 5.0, ""), (3, 6.0, 8.0))
    first, second = table(tmp_path).rounds
    assert (first.numbers["train/approx_kl"], first.numbers["val/gold/reward"]) == (2.0, 4.0)
    assert (second.numbers["train/approx_kl"], second.numbers["val/gold/reward"]) == (5.5, 8.0)
    assert [each.step for each in (first, second)] == [0, 2]


def test_validation_before_training_belongs_to_no_round(tmp_path):
    write_rounds(tmp_path, [0, 1])
    write_metrics(tmp_path, (0, "", 9.0), (0, 1.0, ""), (1, 3.0, 4.0))
    first, second = table(tmp_path).rounds
    assert "val/gold/reward" not in first.numbers
    assert second.numbers["val/gold/reward"] == 4.0


def test_a_skipped_round_has_no_steps(tmp_path):
    """Of two files drawn from the same weights, only the second was trained on: nothing is counted twice."""
    write_rounds(tmp_path, [0, 0, 4])
    write_metrics(tmp_path, (3, 1.0, ""), (4, 2.0, ""))
    assert [one.numbers.get("train/approx_kl") for one in table(tmp_path).rounds] == [None, 1.0, 2.0]


def test_files_that_are_no_rounds_are_left_alone(tmp_path):
    write_rounds(tmp_path, [0, 1])
    (tmp_path / "rollouts" / "00001.jsonl").rename(tmp_path / "rollouts" / "00001.empty.jsonl")
    (tmp_path / "rollouts" / "00002.jsonl").write_text("")
    (tmp_path / "rollouts" / "00003.jsonl").write_text('{"cut sho')
    assert [one.number for one in table(tmp_path).rounds] == [0]
    assert table_of(read_run(tmp_path / "elsewhere", "run"), "sft") is None


def test_a_prompt_is_followed_over_the_rounds(tmp_path):
    write_rounds(tmp_path, [0, 1])
    prompt = table(tmp_path).followed()
    assert prompt is not None
    assert (prompt.prompt, prompt.row) == ("ask", "prompts:0")
    assert [(number, response.text, score) for number, response, score in prompt.responses] == [
        (0, "ask in round 0", "1.000"),
        (1, "ask in round 1", "1.000"),
    ]


def test_rounds_with_a_validation_are_preferred(tmp_path):
    write_rounds(tmp_path, list(range(40)))
    write_metrics(tmp_path, *((step, 1.0, 2.0 if step in (7, 21) else "") for step in range(1, 40)))
    rounds = table(tmp_path)
    assert (rounds.count, len(rounds.rounds), len(rounds.columns)) == (40, 24, 12)
    numbers = [one.number for one in rounds.columns]
    assert {0, 7, 21, 39} <= set(numbers)
    assert numbers == sorted(numbers)


def test_choosing():
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert chosen("abc", [False] * 3, 3) == ["a", "b", "c"]
    assert chosen("abcdefg", [False] * 6 + [True], 3) == ["a", "d", "g"]
    assert chosen("abcdefg", [False, True] + [False] * 5, 3) == ["a", "b", "g"]


def test_the_page_has_rounds_of_runs_that_draw_and_of_no_others(tmp_path):
    for method in ("dpo", "simpo"):
        write_run(tmp_path / "runs" / method, method)
    before = write_report(Runs.read(tmp_path / "runs"), tmp_path / "before")
    assert 'id="rounds"' not in before.page.read_text(encoding="utf-8")
    write_rounds(tmp_path / "runs" / "dpo", [0, 100], response="<b>bold</b>")
    report = write_report(Runs.read(tmp_path / "runs"), tmp_path / "report")
    page = report.page.read_text(encoding="utf-8")
    section = page[page.index('<section id="rounds">') :].partition("</section>")[0]
    assert "&lt;b&gt;bold&lt;/b&gt;" in section
    assert "<b>bold</b>" not in section
    for label in (
        "gold reward after the round",
        "tied pairs of samples",
        "distinct-2",
        "correlation of score and length",
    ):
        assert label in section
    assert section.count("<h3>round ") == 2
    assert tmp_path / "report" / "rounds.png" in report.pictures
