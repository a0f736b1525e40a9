"""The examples of CONTRIBUTING.md and README.md run as they stand there, from a folder with nothing but their files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.conf_dir import conf_dir

ROOT = conf_dir().parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: A file that begins with its name, and the command under it.
EXAMPLES = re.findall(r"```python\n(# (\w+)\.py\n.+?)```\n+```\n(rlhf .+?)\n```", PAGE, re.DOTALL)
#: README's command with a reward of one's own, on a model of a second.
OWN_REWARD = next(line for line in (ROOT / "README.md").read_text().splitlines() if "my_rewards.polite" in line)
SMALL = "model=tiny_random trainer=debug callbacks.samples=null rollout.max_new_tokens=4 data.batch_size=2"


def console_script(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the page with the installed ``rlhf``, whose import path does not hold the current folder."""
    script = Path(sys.executable).with_name("rlhf")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RLHF_")}
    environment["PYTHONPATH"] = str(ROOT)
    words = [str(script), *shlex.split(command)[1:], "paths.output_dir=out"]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_every_example_is_met():
    assert [name for _, name, _ in EXAMPLES] == ["my_losses", "my_ideas"]


@pytest.mark.parametrize(
    ("code", "name", "command"),
    [
        pytest.param(*example, id=example[1], marks=pytest.mark.slow if at else ())
        for at, example in enumerate(EXAMPLES)
    ],
)
def test_an_example_trains(tmp_path: Path, code: str, name: str, command: str):
    (tmp_path / f"{name}.py").write_text(code)
    done = console_script(tmp_path, command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "result.json").is_file()


@pytest.mark.slow
def test_the_own_reward_of_the_readme_trains(tmp_path: Path):
    (tmp_path / "my_rewards.py").write_text("def polite(prompt, response): return float(len(response))\n")
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Say {n}."}}\n' for n in range(40)))
    done = console_script(tmp_path, f"{OWN_REWARD} {SMALL}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "result.json").is_file()
