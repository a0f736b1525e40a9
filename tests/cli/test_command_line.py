"""The command line: flags and overrides in any order, help, completion, quoting."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from rlhf_lightning.cli import help as texts
from rlhf_lightning.cli.complete import SHELLS, complete
from rlhf_lightning.cli.compose import sweep_points
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.generate import composed
from rlhf_lightning.cli.launch import split
from rlhf_lightning.cli.main import COMMANDS, main
from rlhf_lightning.conf_dir import conf_dir


def test_flags_may_stand_anywhere():
    given = split(["a=1", "--config-dir", "mine", "b=2", "-m", "--config-dir=more", "c=3"])
    assert given.flags == ["--config-dir", "mine", "-m", "--config-dir", "more"]
    assert given.overrides == ["a=1", "b=2", "c=3"]
    assert given.config_dirs == ["mine", "more"]
    assert given.multirun


def test_a_flag_without_its_value():
    with pytest.raises(ConfigError, match="--config-dir needs a value"):
        split(["a=1", "--config-dir"])


def test_a_sweep_meets_every_value_once():
    points = list(sweep_points(["a=1,2,3", "b=choice(4,5)", "c=interval(0,1)", "d=6", "e=range(0,2)"]))
    assert points == [
        ["a=1", "b=4", "d=6", "e=0"],
        ["a=2", "b=4", "d=6", "e=0"],
        ["a=3", "b=4", "d=6", "e=0"],
        ["a=1", "b=5", "d=6", "e=0"],
        ["a=1", "b=4", "d=6", "e=1"],
    ]


def test_help_lists_every_group_file_and_key():
    text = " ".join(texts.command("train", "").split())
    for group in ("method", "model", "trainer"):
        for file in (conf_dir() / group).glob("*.yaml"):
            assert file.stem in text
    for word in ("dpo*", "ckpt_path=auto", "--config-dir", "paths.output_dir"):
        assert word in text


def test_overview_lists_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", ["train"]),
        ("train sche", ["scheduler="]),
        ("train trainer=de", ["trainer=debug", "trainer=default"]),
        ("train method=dpo,sim", ["method=dpo,simper", "method=dpo,simpo"]),
        ("train data=json data.source.p", ["data.source.path="]),
        ("train optimizer=sgd optimizer.mo", ["optimizer.momentum="]),
        ("data ", ["inspect"]),
        ("methods x", []),
    ],
)
def test_completion(line, expected):
    assert complete(line) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(tmp_path):
    (tmp_path / "rlhf").write_text('#!/bin/sh\necho "method=dpo"\necho "method=dpop"\n')
    (tmp_path / "rlhf").chmod(0o755)
    script = SHELLS["bash"] + (
        f'PATH={tmp_path}:$PATH\nCOMP_LINE="rlhf train method=dp"; COMP_POINT=${{#COMP_LINE}}\n'
        '_rlhf; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "dpo dpop\n"


@pytest.mark.parametrize(
    "text",
    [
        "What, really?",
        "It's 5 $, isn't it? a=b {c} [d] \\ \"e\"",
        "${f} and \\${g} and \\\\${h}",
        "null",
        "",
    ],
)
def test_a_prompt_arrives_as_it_was_typed(text):
    cfg, overrides = composed(["model=tiny_random", f"prompt={text}", "temperature=0.5"])
    assert cfg.prompt == text
    assert overrides == ["model=tiny_random", "temperature=0.5"]
