"""Blocks of the pages that are marked ``run`` run as they stand, from a folder with nothing but the page's files.

A page's files are its Python blocks that begin with their name (``# my_losses.py``) and its blocks with a title
(``json title="pairs.jsonl"``).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
#: Run in the default suite; the others in the slow one.
FIRST = ("own_loss.md",)
_RUN = re.compile(r"^```bash run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r'^```(?:python\n(?=# (\w+\.py)\n)|\w+ title="([\w.]+)"\n)(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> list[str]:
    """Blocks that are run, in the order of the page."""
    return _RUN.findall(page.read_text(encoding="utf-8"))


def files_of(page: Path) -> dict[str, str]:
    """Name and content of the page's files."""
    return {name or title: text for name, title, text in _FILE.findall(page.read_text(encoding="utf-8"))}


def environment() -> dict[str, str]:
    """That of a reader who has installed the package: ``rlhf`` and ``python`` are found, nothing of ours is set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RLHF_") or name == "RLHF_CACHE"}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }


RUN = [page for page in PAGES if blocks_of(page)]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name, marks=() if page.name in FIRST else pytest.mark.slow) for page in RUN],
)
def test_marked_blocks_run(page: Path, tmp_path: Path):
    for name, text in files_of(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for block in blocks_of(page):
        script = ["bash", "-euo", "pipefail", "-c", block]
        done = subprocess.run(script, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert list(tmp_path.rglob("result.json")), "no run left a result"


def test_the_pages_that_teach_by_running_are_met():
    named = {"own_data.md", "own_loss.md", "own_reward.md", "own_selector.md", "own_environment.md", "sft_to_ppo.md"}
    assert named <= {page.name for page in RUN}


def test_the_loss_of_the_readme_is_the_page_s():
    """README shows the page's example, whose command runs here."""
    readme, page = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "docs" / "learn" / "own_loss.md"
    assert files_of(ROOT / "README.md") == files_of(page)
    assert blocks_of(page)[0] in readme


def test_a_line_of_the_own_reward_s_page_has_the_options_of_the_one_that_runs():
    """The line for a language model is the tested one without the options that make it small."""
    page = ROOT / "docs" / "learn" / "own_reward.md"
    tested = set(blocks_of(page)[0].replace("\\\n", " ").split())
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    (line,) = (line for line in lines if "method=dapo model=smollm2" in line)
    assert set(line.split()) - tested == {"model=smollm2"}
