"""``rlhf env``: what a report of a fault needs, without what must not leave the machine."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from rlhf_lightning.cli.environment import sections
from rlhf_lightning.cli.main import main


def test_versions_and_machine(capsys):
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert f"- torch: {version('torch')}" in out
    assert f"- vadersentiment: {version('vaderSentiment')} (extra lexicon)" in out.lower()
    assert "### Machine" in out
    assert "- cores: " in out


def test_secrets_and_the_home_folder_stay_here(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_show")
    monkeypatch.setenv("HF_HOME", f"{Path.home()}/models")
    monkeypatch.setenv("OTHER_PROGRAM", "x")
    variables = dict(sections()["Variables"])
    assert variables["HF_TOKEN"] == "(set)"
    assert variables["HF_HOME"] == "~/models"
    assert "OTHER_PROGRAM" not in variables


def test_options_are_refused(capsys):
    assert main(["env", "model=smollm2"]) == 2
    assert "rlhf env takes no options" in capsys.readouterr().err
