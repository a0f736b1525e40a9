"""The commands of conf/rollout and of docs/vllm.md compose as they are written, and code of the user's own is found."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.targets import allow_current_folder, locate
from rlhf_lightning.conf_dir import conf_dir

PAGE = (conf_dir().parent / "docs" / "vllm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [line for line in LINES if "rlhf train" in line]
HEADINGS = [
    line[line.index(". rlhf train") + 2 :]
    for file in sorted((conf_dir() / "rollout").glob("vllm*.yaml"))
    for line in file.read_text().splitlines()[:1]
]


@pytest.mark.parametrize("command", [*COMMANDS, *HEADINGS])
def test_a_command_has_what_an_on_policy_run_needs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text("def polite(prompt, response): return 1.0\n")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)
    cfg = compose("train", words[2:])
    assert cfg.rollout._target_.rpartition(".")[2] in ("VLLMEngine", "VLLMServerEngine")
    # Prompts and what scores the responses: neither is left to the reader.
    assert cfg.reward
    assert cfg.data.source


def test_the_page_has_a_command_for_each_way() -> None:
    assert {way for command in COMMANDS for way in re.findall(r"rollout=(\w+)", command)} == {"vllm", "vllm_server"}
    assert len(COMMANDS) >= 5


def test_a_module_of_the_current_folder_is_found_once_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "a_module_of_mine.py").write_text("def polite(prompt, response): return 1.0\n")
    allow_current_folder(["another"])
    with pytest.raises(ImportError, match=r"no package 'a_module_of_mine' is installed\Z"):
        locate("a_module_of_mine.polite")
    allow_current_folder(["a_module_of_mine.polite"])
    assert locate("a_module_of_mine.polite")("", "") == 1.0


def test_what_an_allowed_module_imports_is_allowed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its_helper.py").write_text("WORD = 'please'\n")
    (tmp_path / "the_module.py").write_text("import its_helper\n\ndef polite(prompt, response): return 1.0\n")
    allow_current_folder(["the_module"])
    with pytest.raises(ImportError, match="the_module imports its_helper, which the current folder has: allow it"):
        locate("the_module.polite")


def test_an_installed_package_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filelock.py").write_text("raise AssertionError\n")
    monkeypatch.delitem(sys.modules, "filelock", raising=False)
    allow_current_folder(["filelock"])
    assert locate("filelock.Timeout").__name__ == "Timeout"
