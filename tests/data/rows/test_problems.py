from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rlhf_lightning.data.rows.problems import (
    ADVICE,
    MAX_LISTED,
    WARNINGS,
    DataError,
    DataReport,
    Problem,
    ProblemKind,
    RowError,
    SpecialIds,
    check_ids,
)
from rlhf_lightning.data.sources.files import Files
from rlhf_lightning.data.spec import DataSpec
from rlhf_lightning.data.tokens.tokenize import tokenize
from tests.helpers import tokenizers
from tests.helpers.rows import Rows

BOS, EOS = 1, 2
PLAIN = SpecialIds(bos=BOS, ends=frozenset({EOS}))
TURNS = SpecialIds(bos=BOS, ends=frozenset({EOS}), bos_marks_turns=True)
ONE_TOKEN = SpecialIds(bos=EOS, ends=frozenset({EOS}))

#: prompt, responses, special ids, kind of problem
ROWS = {
    "good": ([BOS, 5], [[6, EOS]], PLAIN, None),
    "no BOS is fine": ([5], [[6, EOS]], PLAIN, None),
    "no prompt": ([], [[6, EOS]], PLAIN, ProblemKind.EMPTY_PROMPT),
    "two BOS": ([BOS, BOS, 5], [[6, EOS]], PLAIN, ProblemKind.TWO_BOS),
    "two BOS where BOS marks turns": ([BOS, BOS, 5], [[6, EOS]], TURNS, ProblemKind.TWO_BOS),
    "BOS inside the prompt": ([BOS, 5, BOS], [[6, EOS]], PLAIN, ProblemKind.TWO_BOS),
    "BOS inside a conversation that uses it so": ([BOS, 5, BOS], [[6, EOS]], TURNS, None),
    "BOS where none leads": ([5, BOS], [[6, EOS]], PLAIN, ProblemKind.TWO_BOS),
    "BOS before a response": ([BOS, 5], [[BOS, 6, EOS]], TURNS, ProblemKind.TWO_BOS),
    "BOS inside a response": ([BOS, 5], [[6, BOS, EOS]], PLAIN, ProblemKind.TWO_BOS),
    "BOS is EOS": ([5], [[6, EOS]], ONE_TOKEN, None),
    "BOS is EOS, doubled in front": ([EOS, EOS, 5], [[6, EOS]], ONE_TOKEN, ProblemKind.TWO_BOS),
    "no EOS": ([5], [[6]], PLAIN, ProblemKind.NO_EOS),
    "two EOS": ([5], [[6, EOS, EOS]], PLAIN, ProblemKind.TWO_EOS),
    "EOS inside": ([5], [[EOS, 6, EOS]], PLAIN, ProblemKind.TWO_EOS),
    "equal responses": ([5], [[6, EOS], [6, EOS]], PLAIN, ProblemKind.IDENTICAL),
    "unequal responses": ([5], [[6, EOS], [7, EOS]], PLAIN, None),
}


@pytest.mark.parametrize("name", ROWS)
def test_checks_of_ids(name):
    prompt, responses, special, kind = ROWS[name]
    masks = [[True] * len(ids) for ids in responses]
    if kind is None:
        check_ids(prompt, responses, masks, special)
        return
    with pytest.raises(RowError) as raised:
        check_ids(prompt, responses, masks, special)
    assert raised.value.kind is kind


def test_checks_look_at_what_is_scored():
    with pytest.raises(RowError, match="none of its 2 tokens is scored"):
        check_ids([5], [[6, EOS]], [[False, False]], PLAIN)
    with pytest.raises(RowError, match="its last token is 2"):  # an EOS nobody learns
        check_ids([5], [[6, EOS]], [[True, False]], PLAIN)
    # each scored turn of a conversation may end with its own EOS
    check_ids([5], [[6, EOS, 9, 7, EOS]], [[True, True, False, True, True]], PLAIN)
    check_ids([5], [[EOS, 7, EOS]], [[False, True, True]], PLAIN)  # the end of an earlier, unscored turn
    check_ids([5], [[6]], [[True]], PLAIN, cut=True)  # a cut response has lost its EOS


def test_messages_name_the_side():
    with pytest.raises(RowError, match="rejected: its last token"):
        check_ids([5], [[6, EOS], [7]], [[True, True], [True]], PLAIN)


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}
#: line of the file -> the problem of it; None: the row is used
BAD_FILE = [
    (json.dumps(GOOD), None),
    ('{"prompt": ', ProblemKind.BROKEN),
    (json.dumps({"prompt": "a", "chosen": "b"}), ProblemKind.MISSING),
    (json.dumps({**GOOD, "chosen": 3}), ProblemKind.TYPE),
    (json.dumps({**GOOD, "prompt": " "}), ProblemKind.EMPTY_PROMPT),
    (json.dumps({**GOOD, "rejected": "\n"}), ProblemKind.EMPTY_RESPONSE),
    (json.dumps({**GOOD, "rejected": "b"}), ProblemKind.IDENTICAL),
    (json.dumps({**GOOD, "prompt": "a" * 30}), ProblemKind.TOO_LONG),
    (json.dumps({**GOOD, "prompt": "x<s>y"}), ProblemKind.TWO_BOS),
    (json.dumps({**GOOD, "chosen": "b</s>b"}), ProblemKind.TWO_EOS),
    (json.dumps(GOOD), ProblemKind.DUPLICATE),
    (json.dumps({**GOOD, "prompt": [{"role": "system", "content": "s"}]}), ProblemKind.TEMPLATE),
    (json.dumps({**GOOD, "prompt": "z"}), None),
]


@pytest.fixture
def bad_file(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(line for line, _ in BAD_FILE), encoding="utf-8")
    return path


def report_of(path, **options):
    spec = DataSpec(cache=False, max_length=20, **options)
    made = tokenize(Files(str(path)), tokenizers.llama_like(), spec, "preference")
    return made, spec


def test_every_kind_of_bad_row_is_reported_with_file_and_row(bad_file):
    made, _ = report_of(bad_file)
    expected = [(f"{bad_file}:{line}", kind) for line, (_, kind) in enumerate(BAD_FILE, start=1) if kind]
    assert sorted((p.row, p.kind) for p in made.report.problems) == sorted(expected)
    assert [example.row.rpartition(":")[2] for example in made.examples] == ["1", "11", "13"]
    report = made.report
    assert (report.rows, report.kept, report.bad, report.filtered) == (13, 3, 10, 0)
    assert report.warnings == {"duplicate": 1}
    assert [str(p) for p in report.problems if p.kind is ProblemKind.DUPLICATE] == [
        f"{bad_file}:11: duplicate: the same tokens as {bad_file}:1"
    ]


def test_bad_rows_stop_the_run_with_their_rows_and_the_fix(bad_file):
    made, spec = report_of(bad_file)
    with pytest.raises(DataError) as raised:
        made.report.enforce(spec)
    message = str(raised.value)
    assert f"9 of 13 rows of {bad_file} cannot be used:" in message
    assert f"{bad_file}:2: broken row: not valid JSON at column 11" in message
    assert "duplicate" not in message
    assert "too long" not in message  # its own option decides
    assert "data.spec.on_bad_row=exclude" in message


def test_policies(bad_file):
    made, spec = report_of(bad_file, on_bad_row="exclude", max_left_out=0.8)
    made.report.enforce(spec)
    made, spec = report_of(bad_file, on_bad_row="exclude", too_long="error")
    with pytest.raises(DataError, match=r"1 of 13 rows .*\n.*bad.jsonl:8: too long: 33 tokens over max_length=20"):
        made.report.enforce(spec)


@pytest.mark.parametrize(("bad", "stops"), [(10, False), (11, True)])
def test_more_than_a_tenth_left_out_stops_with_the_option_that_allows_it(bad, stops):
    rows = [
        {**GOOD, "prompt": f"a{i}" * (30 if i < 4 else 1), "chosen": "b" if i < 104 - bad else 5} for i in range(100)
    ]
    spec = DataSpec(cache=False, on_bad_row="exclude", max_length=50)
    report = tokenize(Rows(*rows), tokenizers.qwen_like(), spec, "preference").report
    assert report.bad == bad
    if not stops:
        report.enforce(spec)
        return
    with pytest.raises(DataError) as raised:
        report.enforce(spec)
    assert str(raised.value).startswith(
        "11 of 100 rows of rows are left out (11%: 7 wrong type, 4 too long), more than data.spec.max_left_out=0.1 "
        "allows. Repair them, or allow it with data.spec.max_left_out=0.11:"
    )
    report.enforce(replace(spec, max_left_out=0.11))
    with pytest.raises(ValueError, match=r"data\.spec\.max_left_out=10 is a share"):
        DataSpec(max_left_out=10)


def test_rows_of_another_label_are_not_left_out():
    rows = [{"prompt": "a", "response": f"b{i}", "label": i == 0} for i in range(10)]
    spec = DataSpec(cache=False, label=True)
    made = tokenize(Rows(*rows), tokenizers.qwen_like(), spec, "supervised")
    made.report.enforce(spec)
    assert (len(made.examples), made.report.excluded) == (1, {})


def test_nothing_left_is_an_error_whatever_the_policy(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    made, spec = report_of(tmp_path / "empty.jsonl", on_bad_row="exclude")
    with pytest.raises(DataError, match=r"empty\.jsonl: it holds no rows"):
        made.report.enforce(spec)
    rows = Rows({**GOOD, "prompt": "a" * 50})
    spec = DataSpec(cache=False, max_length=20)
    made = tokenize(rows, tokenizers.llama_like(), spec, "preference")
    with pytest.raises(DataError, match=r"none of its 1 rows can be used(.|\n)*raise data\.spec\.max_length"):
        made.report.enforce(spec)
    rows = Rows({"text": "a", "label": False})
    spec = DataSpec(cache=False, label=True)
    made = tokenize(rows, tokenizers.llama_like(), spec, "supervised")
    with pytest.raises(DataError, match=r"data\.spec\.label=True leaves none of its 1 rows"):
        made.report.enforce(spec)


def test_errors_list_the_first_problems_and_count_the_others():
    report = DataReport("f", "supervised", rows=30, kept=5)
    for number in range(25):
        report.add(Problem(f"f:{number}", ProblemKind.MISSING, "no 'x'"))
    with pytest.raises(DataError) as raised:
        report.enforce(DataSpec())
    message = str(raised.value)
    assert message.count("missing field: no 'x'") == 10
    assert "... and 15 more" in message


def test_reports_survive_json_and_keep_counting_beyond_the_list():
    report = DataReport("f", "preference", rows=3, kept=1, formats={"text": 3}, notes=["n"])
    for number in range(MAX_LISTED + 5):
        report.add(Problem(f"f:{number}", ProblemKind.TOO_LONG, "m"))
    report.add(Problem("f:1", ProblemKind.DUPLICATE, "m"))
    assert len(report.problems) == MAX_LISTED
    assert report.by_kind() == {ProblemKind.TOO_LONG: MAX_LISTED + 5, ProblemKind.DUPLICATE: 1}
    assert DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_summary_and_shares():
    report = DataReport("f", "supervised", rows=10, kept=6, groups=6, filtered=1, prompt_tokens=30, response_tokens=10)
    report.scored_tokens, report.boundary_checked, report.boundary_mismatched = 8, 4, 1
    for kind in (ProblemKind.BROKEN, ProblemKind.BROKEN, ProblemKind.TYPE, ProblemKind.DUPLICATE):
        report.add(Problem("f:1", kind, "m"))
    assert report.summary() == (
        "f: 6 of 10 rows kept, 2 broken row, 1 wrong type, 1 with another label, 1 duplicate (kept)"
    )
    assert (report.supervised_fraction, report.mismatch_rate) == (0.2, 0.25)


def test_every_kind_has_advice():
    assert set(ADVICE) == set(ProblemKind)
    assert ProblemKind.DUPLICATE in WARNINGS
