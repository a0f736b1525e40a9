"""No method without a learning case, no family without one in the default suite."""

from __future__ import annotations

from rlhf_lightning.conf_dir import conf_dir
from tests.learning.test_learning import CASES

#: Methods whose claim is tested elsewhere, and where.
ELSEWHERE = {
    "ttrl": "it claims more right answers, not a higher gold reward: tests/learning/test_self_rewarding.py",
    "rlsc": "it claims sharper answers, not a higher gold reward: tests/learning/test_self_rewarding.py",
    "rahf_dual": "it needs two trained models; its target is tested in tests/methods/test_representation.py",
    "armorm": "its first stage has a case, the second needs that model and is tested in tests/methods/test_rating.py",
}


def test_every_method_has_a_case():
    """A yaml that is added to conf/method fails here until a case claims that the method learns."""
    methods = {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
    assert methods - {case.method for case in CASES} == set(ELSEWHERE)


def test_every_file_of_rounds_has_a_case():
    """A yaml that is added to conf/rounds fails here until a case claims that a method learns with it."""
    files = {path.stem for path in (conf_dir() / "rounds").glob("*.yaml")} - {"none"}
    chosen = [
        option.removeprefix("rounds=") for case in CASES for option in case.overrides if option.startswith("rounds=")
    ]
    assert set(chosen) == files


def test_cases_are_about_methods_and_differ():
    assert {case.method for case in CASES} <= {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
    names = [(case.name, case.metric) for case in CASES]
    assert len(set(names)) == len(names)


def test_margins_are_not_noise():
    """The gold reward's mean has a standard error of 0.09 points; a claim of less than five of them proves nothing."""
    assert all(case.margin >= 0.45 for case in CASES if case.metric == "val/gold/reward" and not case.falls)
    assert all(case.flipped_limit < case.margin for case in CASES)
