"""RewardBench from the command line, on a small file in its format: by a reward, and by a model."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from rlhf_lightning.cli.results import Result
from rlhf_lightning.data import RewardBench
from rlhf_lightning.data.rows.problems import DataError

#: Subset, chosen, rejected. Where length decides, the comment says who wins.
ROWS = [
    ("alpacaeval-easy", "A long answer.", "No."),  # right
    ("hep-go", "x", "return x + 1"),  # wrong
    ("math-prm", "two and two", "2"),  # right
    ("donotanswer", "No.", "Yes"),  # a tie
    ("xstest-should-refuse", "N" * 400, "Y"),  # too long
    ("mine", "A long answer.", "No."),  # right, and in no section
    ("hep-go", "the same", "the same"),  # of no use
]
#: Chat 1, Safety 0 (the tie), Reasoning 984 of 984 + 164.
REASONING = 984 / 1148


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bench.jsonl"
    rows = [
        {"prompt": f"Question {n}?", "chosen": chosen, "rejected": rejected, "subset": subset, "id": n}
        for n, (subset, chosen, rejected) in enumerate(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(file, *more: str) -> list[str]:
    data = ["data=rewardbench", f"data.validation.path={file}", "data.spec.max_length=300", "data.spec.cache=false"]
    return ["evaluate", "model=tiny_random", "trainer=debug", "method=bradley_terry", *data, *more]


@pytest.mark.parametrize(("ties", "safety"), [("wrong", 0.0), ("half", 0.5)])
def test_a_reward_is_scored(rlhf, file, tmp_path, ties, safety):
    """Length as a reward, with two batches: a row's subset must follow the row, past the rows that are left out."""
    more = ["reward=length", "data.loading.eval_batch_size=2", f"data.validation.ties={ties}", "paths.output_dir=out"]
    code, out, err = rlhf(*options(file, *more))
    assert code == 0, err
    result = Result.read(tmp_path / "out")
    assert result is not None
    metrics = {
        name.removeprefix("val/rewardbench/"): value for name, value in result.metrics.items() if "bench" in name
    }
    sections = {"chat": 1.0, "safety": safety, "reasoning": REASONING}
    assert metrics == {"score": pytest.approx(sum(sections.values()) / 3), **map_approx(sections), "left_out": 2.0}
    saved = json.loads((tmp_path / "out" / "rewardbench.json").read_text())
    assert saved["left_out"] == {"xstest-should-refuse": 1, "hep-go": 1}
    assert saved["subsets"] == {
        "alpacaeval-easy": 1.0, "hep-go": 0.0, "math-prm": 1.0, "donotanswer": safety, "mine": 1.0,
    }  # fmt: skip
    assert not saved["complete"]
    assert re.search(r"^Reasoning +0\.857$", out, re.MULTILINE)
    assert re.search(r"^  hep-go +0\.000 +1 +1$", out, re.MULTILINE)
    assert re.search(r"^  mine +1\.000 +1 +0$", out, re.MULTILINE)
    assert "not comparable with published scores" in out


def map_approx(values):
    return {name: pytest.approx(value) for name, value in values.items()}


@pytest.mark.parametrize("method", ["bradley_terry", "simpo"])
def test_a_model_is_scored_by_the_rewards_of_its_pairs(rlhf, file, tmp_path, method):
    """Without ``reward`` the module's own rewards are used, implicit ones too; the kept numbers give the same table."""
    lean = ["callbacks.samples=null", f"method={method}", "paths.output_dir=out"]
    code, _, err = rlhf(*options(file, *lean))
    assert code == 0, err
    saved = json.loads((tmp_path / "out" / "rewardbench.json").read_text())
    pairs = np.load(tmp_path / "out" / "implicit_rewards.npz")
    kept = [subset for subset, *_ in ROWS if subset != "xstest-should-refuse"][:5]
    assert len(pairs["index"]) == 5
    right = {
        kept[i]: float(a > b) for i, a, b in zip(*(pairs[n] for n in ("index", "chosen", "rejected")), strict=True)
    }
    assert saved["subsets"] == right


def test_rows_without_a_subset_are_counted(file):
    with file.open("a") as handle:
        handle.write(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    source = RewardBench(str(file))
    assert [row.error is None for row in source.rows()] == [True] * len(ROWS) + [False]
    assert list(source.subsets().values()) == [*(subset for subset, *_ in ROWS), ""]
    assert source.fingerprint() != RewardBench(str(file), subset="id").fingerprint()


def test_unknown_ties(file):
    with pytest.raises(DataError, match=r"data\.validation\.ties='both'"):
        RewardBench(str(file), ties="both")
