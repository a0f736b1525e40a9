"""``rlhf claims``: the board, its record, and what ``run`` runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.claims import record
from rlhf_lightning.claims.claim import Arm, Check, Claim
from rlhf_lightning.claims.papers import claims
from rlhf_lightning.claims.record import Measurement, read
from rlhf_lightning.claims.verdict import NOT_RUN, SHOWN, judge, plain
from rlhf_lightning.cli import claims as command
from rlhf_lightning.cli import claims_run
from rlhf_lightning.cli.claims_page import STALE, page, without_staleness
from rlhf_lightning.cli.claims_run import ArmError, measured
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.results import Result

ROOT = Path(__file__).parents[2]
A, B = Arm("dpo"), Arm("ipo", ("method.loss.beta=0.2",))
CLAIM = Claim("arXiv:1", "ipo has longer responses", (Check(B, A, "val/gold/length"),))


class Jobs:
    """Stands for the jobs of arms: numbers that follow from the arm and its seed, and what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, ...]]] = []
        self.shift, self.failing, self.meanwhile = 0.0, "", lambda: None

    def __call__(self, arm, seeds, folder) -> list[Result]:
        self.asked.append((arm.method, tuple(seeds)))
        self.meanwhile()
        if arm.method == self.failing:
            raise ArmError("the disk is full")
        base = 20.0 if arm.method == "ipo" else 10.0
        return [
            Result("done", metrics={"val/gold/length": base + seed + self.shift, "val/loss": 1.0}, seconds=2.0)
            for seed in seeds
        ]


@pytest.fixture
def board(tmp_path, monkeypatch):
    """A board of one claim in a folder of its own, its jobs, and the code that they depend on."""
    jobs, code = Jobs(), {"of": "old"}
    for module in (command, record, claims_run):
        monkeypatch.setattr(module, "code_of", lambda arm: code["of"])
    monkeypatch.setattr("rlhf_lightning.claims.verdict.code_of", lambda arm: code["of"])
    monkeypatch.setattr(claims_run, "run_jobs", jobs)
    monkeypatch.setattr(command, "claims", lambda: (CLAIM,))
    monkeypatch.setattr(command, "papers", lambda: {"arXiv:1": ["ipo"]})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    return jobs, code


def test_run_runs_what_is_missing_and_nothing_twice(board):
    jobs, _ = board
    assert command.main(["run"]) == 0
    assert jobs.asked == [("ipo", (1, 2, 3)), ("dpo", (1, 2, 3))]
    arms = read(command.RECORD)
    assert arms[A.command].metrics == {"val/gold/length": (11.0, 12.0, 13.0)}
    assert judge(CLAIM, arms).state == SHOWN
    assert command.main(["run"]) == 0
    assert len(jobs.asked) == 2


def test_two_processes_keep_what_the_other_has_written(board):
    """Fails when the record is written as it was before the jobs."""
    jobs, _ = board
    jobs.failing = "dpo"
    other = Measurement((1, 2, 3), {"val/gold/length": (1.0, 2.0, 3.0)}, "old", None, {}, "2024-01-01", 1.0)
    jobs.meanwhile = lambda: command.save(command.RECORD, {**read(command.RECORD), A.command: other})
    command.main(["run"])
    assert set(read(command.RECORD)) == {A.command, B.command}


def test_a_run_that_was_stopped_keeps_what_it_has(board):
    jobs, _ = board
    jobs.failing = "dpo"
    assert command.main(["run"]) == 1
    assert list(read(command.RECORD)) == [B.command]
    assert judge(CLAIM, read(command.RECORD)).state == NOT_RUN
    jobs.failing = ""
    assert command.main(["run"]) == 0
    assert jobs.asked[2:] == [("dpo", (1, 2, 3))]


def test_other_code_with_the_same_numbers_is_confirmed_by_one_seed(board):
    jobs, code = board
    command.main(["run"])
    code["of"] = "new"
    assert judge(CLAIM, read(command.RECORD)).stale
    command.main(["run"])
    assert jobs.asked[2:] == [("ipo", (1,)), ("dpo", (1,))]
    arms = read(command.RECORD)
    assert {one.code for one in arms.values()} == {"new"}
    assert all(one.confirmed for one in arms.values())
    assert not judge(CLAIM, arms).stale


def test_other_code_with_other_numbers_runs_every_seed(board):
    jobs, code = board
    command.main(["run"])
    code["of"], jobs.shift = "new", 1e-9
    command.main(["run"])
    assert jobs.asked[2:] == [("ipo", (1,)), ("ipo", (1, 2, 3)), ("dpo", (1,)), ("dpo", (1, 2, 3))]
    arms = read(command.RECORD)
    assert arms[A.command].metrics["val/gold/length"][0] == 11.0 + 1e-9
    assert arms[A.command].confirmed is None


def test_a_metric_that_jobs_do_not_log_is_named(board):
    with pytest.raises(ArmError, match=r"does not log val/token/entropy; it logs val/gold/length"):
        measured(A, {"val/token/entropy"}, None)


def test_arms_that_no_claim_asks_for_leave_the_record(board):
    old = Measurement((1,), {"x": (1.0,)}, "c", None, {}, "2024-01-01", 1.0)
    command.save(command.RECORD, {"rlhf train gone": old})
    command.main(["run"])
    assert set(read(command.RECORD)) == {A.command, B.command}


def test_the_page_and_the_board_say_what_was_measured(board, capsys):
    _, code = board
    command.main(["run", "--write"])
    text = command.PAGE.read_text()
    assert "1 papers: 1 shown, 0 not shown, 0 not testable here, 0 not run yet.**" in text
    assert "ipo method.loss.beta=0.2 22.00 ± 0.58, dpo 12.00 ± 0.58: +10.00 ± 0.82 (more is claimed; 3 seeds)" in text
    assert f"`{B.command}`" in text
    capsys.readouterr()
    command.main([])
    assert "+10.00 ± 0.82" in " ".join(capsys.readouterr().out.split())
    command.main(["ipo"])
    assert B.command in capsys.readouterr().out
    code["of"] = "new"
    stale = command.written(command.RECORD)
    assert f"**shown**{STALE}" in stale
    assert "0 not run yet; 1 stale.**" in stale
    assert without_staleness(stale) == without_staleness(text)
    assert without_staleness(stale) != without_staleness(text.replace("22.00", "23.00"))


@pytest.mark.parametrize("name", ["ipo", "1", "arXiv:1"])
def test_names_are_papers_numbers_or_methods(board, name):
    assert command.chosen_claims([name]) == [CLAIM]
    with pytest.raises(ConfigError, match=r"no paper or method 'ip0' on the board\. Did you mean ipo"):
        command.chosen_claims(["ip0"])


def test_without_a_record_the_board_says_where_to_look(board):
    with pytest.raises(ConfigError, match=r"there is no docs/claims.json here"):
        command.main([])


def test_every_paper_has_a_row_and_every_row_a_paper():
    """A yaml with a new paper fails here until the board has a claim for it."""
    rows = [claim.paper for claim in claims()]
    assert sorted(rows) == sorted(command.papers())


def test_every_claim_can_be_judged_or_says_why_not():
    for claim in claims():
        assert claim.sentence.endswith(".")
        assert bool(claim.checks or claim.measured_by) != bool(claim.untestable), claim.paper


def test_arms_of_the_same_command_are_the_same_arm():
    arms = {arm for claim in claims() for arm in claim.arms}
    assert len({arm.command for arm in arms}) == len(arms)


def test_the_record_has_the_verdicts_of_its_numbers():
    """Numbers that were typed, or a rule that was changed without writing the record again, fail here."""
    arms = read(ROOT / command.RECORD)
    assert arms
    written = json.loads((ROOT / command.RECORD).read_text(encoding="utf-8"))["claims"]
    assert written == json.loads(json.dumps({claim.paper: plain(judge(claim, arms)) for claim in claims()}))


def test_the_page_is_up_to_date():
    """But for what is stale, which changes with the code."""
    arms = read(ROOT / command.RECORD)
    text = page([judge(claim, arms) for claim in claims()], command.papers(), arms)
    assert without_staleness((ROOT / command.PAGE).read_text(encoding="utf-8")) == without_staleness(text), (
        "run: rlhf claims --write"
    )


def test_the_board_needs_no_torch():
    script = (
        "import sys; from rlhf_lightning.cli.main import main; main(['claims', 'simpo'])\n"
        "sys.stderr.write(str({'torch', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "method=simpo" in done.stdout
    assert done.stderr == "set()"


ARMS = sorted({arm for claim in claims() for arm in claim.arms}, key=lambda arm: arm.command)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.command)
def test_arms_compose(arm, tmp_path):
    """A start is there only once it was trained, so options behind one are not checked."""
    assert compose("train", arm.options_from(str(tmp_path)), check=arm.start is None).method is not None


@pytest.mark.slow
def test_jobs_are_sweeps_that_are_resumed(tmp_path, monkeypatch, capsys):
    """Real jobs of a moment: a start that is trained once, then two seeds; a third run computes nothing."""
    monkeypatch.chdir(tmp_path)
    short = ("data.source.size=32", "callbacks.gold=null")
    start = Arm("sft", ("data.source.size=32", "callbacks=[export]"), seeds=(1,))
    arm = Arm("dpo", (*short, "model=run", "model.run=START"), seeds=(1, 2), start=start)
    folder = tmp_path / "jobs"
    (first,) = claims_run.run_jobs(arm, (1,), folder)
    trained = (folder / "start" / "result.json").stat().st_mtime
    capsys.readouterr()
    both = claims_run.run_jobs(arm, arm.seeds, folder)
    assert "was done before" in capsys.readouterr().out
    assert [result.status for result in both] == ["done", "done"]
    assert both[0].metrics == first.metrics != both[1].metrics
    assert (folder / "start" / "result.json").stat().st_mtime == trained
    with pytest.raises(ConfigError, match=r"method\.loss\.beta: -1 is not allowed"):
        claims_run.run_jobs(Arm("dpo", (*short, "method.loss.beta=-1"), seeds=(1,)), (1,), folder)
