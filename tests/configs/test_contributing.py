"""The examples of CONTRIBUTING.md run as they stand there."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from rlhf_lightning.conf_dir import conf_dir

PAGE = (conf_dir().parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: A file that begins with its name, and the command under it.
EXAMPLES = re.findall(r"```python\n(# (\w+)\.py\n.+?)```\n+```\n(rlhf .+?)\n```", PAGE, re.DOTALL)


def test_every_example_is_met():
    assert [name for _, name, _ in EXAMPLES] == ["my_losses", "my_ideas"]


@pytest.mark.parametrize(("code", "name", "command"), EXAMPLES, ids=[name for _, name, _ in EXAMPLES])
def test_an_example_trains(rlhf, tmp_path, monkeypatch: pytest.MonkeyPatch, code: str, name: str, command: str):
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setitem(sys.modules, name, None)  # so that the entry is taken away afterwards
    del sys.modules[name]
    monkeypatch.syspath_prepend(str(tmp_path))
    status, _, err = rlhf(*shlex.split(command)[1:], "paths.output_dir=out")
    assert status == 0, err
    assert (tmp_path / "out" / "result.json").is_file()
