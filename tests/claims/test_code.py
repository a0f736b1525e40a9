"""The digest of the code behind a job: what makes a result stale, and what does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_lightning.claims import code
from rlhf_lightning.claims.claim import BASE, Arm

FILES = {
    "pkg/__init__.py": "",
    "pkg/losses/__init__.py": "from pkg.losses.pairs import dpo\nfrom pkg.losses.lists import pro\n",
    "pkg/losses/pairs.py": 'from pkg.ops import total\n\ndef dpo(x):\n    """One."""\n    return total(x)\n',
    "pkg/losses/lists.py": "def pro(x):\n    return x\n",
    "pkg/ops.py": "def total(x):\n    from pkg.late import factor\n    return factor * sum(x)\n",
    "pkg/late.py": "factor = 2\nTEXT = '''\n# Query\n'''\n",
    "conf/train.yaml": "defaults:\n  - method: dpo\n  - trainer: default\n  - logger: csv\n  - _self_\n",
    "conf/method/dpo.yaml": "# DPO\n_target_: pkg.losses.dpo\nbeta: 0.1\n",
    "conf/method/pro.yaml": "_target_: pkg.losses.pro\n",
    "conf/trainer/default.yaml": "steps: 1\n",
    "conf/trainer/tiny.yaml": "defaults: [default, _self_]\n",
    "conf/logger/csv.yaml": "folder: x\n",
    "conf/model/tiny.yaml": "size: 1\n",
    "conf/experiment/tiny.yaml": "defaults:\n  - override /trainer: tiny\n  - override /model: tiny\n",
    "conf/world/tiny/dpo.yaml": "defaults: [/world/common, _self_]\nlr: 1\n",
    "conf/world/common.yaml": "lr: 2\n",
}
OPTIONS = ("experiment=tiny", "method=dpo", "data.size=8")


def forget() -> None:
    for member in vars(code).values():
        if hasattr(member, "cache_clear") and member is not code.conf_dir:
            member.cache_clear()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package of a few lines, and a function that changes a file of it and gives the digest."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "pkg")
    monkeypatch.setattr(code, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.setattr(code, "_TARGET", re.compile(r"_target_[:=]\s*(pkg(?:\.\w+)+)"))

    def digest_with(name: str = "", old: str = "", new: str = "", options=OPTIONS) -> str:
        for file, text in FILES.items():
            assert file != name or old in text
            (tmp_path / file).write_text(text.replace(old, new) if file == name else text)
        forget()
        return code.digest(options)

    yield digest_with
    forget()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pkg/losses/pairs.py", "total(x)\n", "total(x) + 1\n"),
        ("pkg/ops.py", "sum", "max"),
        ("pkg/late.py", "2", "3"),  # imported in a function
        ("pkg/late.py", "# Query", "# Question"),  # a line of a text, not a comment
        ("conf/method/dpo.yaml", "0.1", "0.2"),
        ("conf/trainer/default.yaml", "1", "2"),  # included by a choice of the experiment
        ("conf/model/tiny.yaml", "1", "2"),
        ("conf/world/tiny/dpo.yaml", "1", "3"),
        ("conf/world/common.yaml", "2", "3"),
    ],
)
def test_what_a_job_computes_with_makes_it_stale(project, name, old, new):
    assert project(name, old, new) != project()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pkg/losses/pairs.py", "One.", "Another."),
        ("pkg/losses/pairs.py", "\n\ndef", "\n# a comment\n\n\ndef"),
        ("pkg/losses/lists.py", "return x", "return -x"),  # of another method
        ("conf/method/pro.yaml", "pro", "other"),
        ("conf/method/dpo.yaml", "# DPO", "# DPO again"),
        ("conf/logger/csv.yaml", "x", "y"),
    ],
)
def test_what_it_does_not_compute_with_does_not(project, name, old, new):
    assert project(name, old, new) == project()


def test_another_method_and_an_option_that_names_code_are_other_code(project):
    digests = {
        project(),
        project(options=("experiment=tiny", "method=pro")),
        project(options=(*OPTIONS, "+x._target_=pkg.losses.pro")),
    }
    assert len(digests) == 3


def test_what_a_job_of_the_tiny_world_depends_on():
    """The loss's file, its helpers, the data and the world; not the files of other losses, not the command."""
    options = Arm("simpo").options
    chosen = {path.relative_to(code.conf_dir()).as_posix() for path in code.yamls(options)}
    assert {"method/simpo.yaml", "experiment/tiny.yaml", "model/tiny.yaml", "data/tiny.yaml", "train.yaml"} <= chosen
    assert not {"method/dpo.yaml", "model/smollm2.yaml", "logger/csv.yaml"} & chosen
    reached = code.closure([target for path in code.yamls(options) for target in code._targets_of(path)])
    parts = {name.split(".")[1] for name in reached}
    assert {"losses", "methods", "models", "data", "world", "ops", "callbacks"} <= parts
    assert "cli" not in parts
    assert "rlhf_lightning.losses.reference_free" in reached
    assert "rlhf_lightning.losses.judgment" not in reached


def test_rounds_bring_their_files():
    options = Arm("sft", ("rounds=raft", "reward=gold")).options
    chosen = {path.relative_to(code.conf_dir()).as_posix() for path in code.yamls(options)}
    assert {"rounds/raft.yaml", "world/rounds/tiny/raft.yaml", "world/rounds/common.yaml", "reward/gold.yaml"} <= chosen


def test_every_file_exists():
    assert all(isinstance(path, Path) and path.is_file() for path in code.yamls(BASE.options))
